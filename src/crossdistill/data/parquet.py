"""Parquet shards in the Hugging Face layout: labels are matched by the names in the schema of each shard."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.config.data import LoaderConfig
from crossdistill.data.class_names import largest_number, name_difference
from crossdistill.data.datasets import Images, Source
from crossdistill.data.rows import Rows
from crossdistill.data.shards import roles_of, shard_files
from crossdistill.data.tree import Tree
from crossdistill.errors import UserError
from crossdistill.files import file_digest

_AT_ONCE = 1000
_BLOCK, _BLOCKS = 2**16, 4096


class Table(Rows):
    """Rows of a Hugging Face data set."""

    def __init__(self, dataset: Any, image: str, labels: Sequence[int], split: str) -> None:
        from datasets import Image as ImageFeature

        super().__init__(labels, split)
        self.dataset = dataset.select_columns([image]).cast_column(image, ImageFeature(decode=False))
        self.image = image

    @property
    def nbytes(self) -> int:
        """Size of all images in bytes, about."""
        return int(self.dataset.data.nbytes)

    def cells(self, indices: Sequence[int]) -> Iterable[Any]:
        """Yield the stored images of some rows, not decoded."""
        for start in range(0, len(indices), _AT_ONCE):
            yield from self.dataset[list(indices[start : start + _AT_ONCE])][self.image]


@dataclass(frozen=True)
class _Shard:
    """Rows with one schema: a file, or all files of a split whose schemas are the same."""

    split: str
    rows: Any
    label: str

    @property
    def feature(self) -> Any:
        return self.rows.features[self.label]

    def values(self) -> list[Any]:
        """Return the labels as they are stored. Raises UserError for rows without one, or with several."""
        column = self.rows.with_format("arrow", columns=[self.label])[:][self.label]
        if column.null_count:
            first = column.is_null().to_pylist().index(True)
            raise UserError(
                f"row {first} of the {self.split} split has no label ({column.null_count} of {len(column)} rows have "
                f"none in the column {self.label!r}); remove these rows, or name another with --loader.label-column"
            )
        return column.to_pylist()


def parquet_source(folder: Path, tree: Tree, config: LoaderConfig) -> Source:
    """Open parquet shards. Raises UserError."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("reading parquet needs Hugging Face datasets: pip install 'crossdistill[parquet]'") from error
    datasets.disable_progress_bars()
    files = shard_files(tree.parquet)
    try:
        found = {split: _open(folder, paths) for split, paths in files.items()}
    except Exception as error:  # arrow, fsspec and datasets raise many kinds for a broken shard
        cause = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"the parquet shards in {str(folder)!r} cannot be read: {cause}") from error
    roles = roles_of(found, folder)
    first = found[roles["train"]][0].features
    image = _column(first, config.image_column, "image", _is_image)
    if config.labels == "none":
        unlabelled = _unlabelled(found, roles, image)
        return Source(folder.resolve().name, unlabelled, ("image",), tuple(_left_out(found, roles, tree)))
    label = _column(first, config.label_column, "label", lambda f: isinstance(f, datasets.ClassLabel))
    shards = {role: [_Shard(split, rows, label) for rows in found[split]] for role, split in roles.items()}
    for role in shards:
        _check_columns(shards[role], image, label)
    names = _class_names(shards["train"])
    splits: dict[str, Images] = {}
    for role, parts in shards.items():
        labels = [number for part in parts for number in _numbers(part, names)]
        rows = datasets.concatenate_datasets([part.rows.select_columns([image]) for part in parts])
        splits[role] = Table(rows, image, labels, parts[0].split)
    left_out = [*_other_labels(first, label), *_left_out(found, roles, tree)]
    return Source(folder.resolve().name, splits, names, tuple(left_out))


def _is_image(feature: Any) -> bool:
    """Return whether a column holds images: by its type, or as the bytes and the path that pandas writes."""
    from datasets import Image

    return isinstance(feature, Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _other_labels(features: Any, label: str) -> list[str]:
    """Say in a phrase which other columns hold classes."""
    from datasets import ClassLabel

    others = [repr(name) for name, kind in features.items() if isinstance(kind, ClassLabel) and name != label]
    return (
        [f"the classes in {', '.join(others)}; those in {label!r} are read (--loader.label-column)"] if others else []
    )


def _unlabelled(found: dict[str, list[Any]], roles: dict[str, str], image: str) -> dict[str, Images]:
    """Return the images of each split; columns of labels are not read. Raises UserError."""
    import datasets

    splits: dict[str, Images] = {}
    for role, split in roles.items():
        if any(image not in rows.features for rows in found[split]):
            raise UserError(f"a shard of the {split} split has no column {image!r}")
        rows = datasets.concatenate_datasets([part.select_columns([image]) for part in found[split]])
        splits[role] = Table(rows, image, [0] * len(rows), split)
    return splits


def _open(folder: Path, paths: Sequence[str]) -> list[Any]:
    """Return the rows of a split: together where the schemas of its shards are the same, else shard by shard."""
    import datasets
    import pyarrow.parquet

    files = [str(folder / path) for path in paths]
    schemas = [datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(file)) for file in files]
    same = all(features == schemas[0] for features in schemas)
    return [_converted(group) for group in ([files] if same else [[file] for file in files])]


def _converted(files: Sequence[str]) -> Any:
    """Return the rows of shards with one schema, in arrow format, converted once and stored for later commands.

    `datasets` knows a stored conversion by path and time of change alone, and a file may be replaced by another with
    the same time; so the place in its store is named by a digest of the contents.
    """
    import datasets

    digest = hashlib.sha256("|".join(content_digest(file) for file in files).encode()).hexdigest()[:24]
    store = Path(datasets.config.HF_DATASETS_CACHE) / "crossdistill" / digest
    return datasets.load_dataset("parquet", data_files={"train": list(files)}, split="train", cache_dir=str(store))


def content_digest(path: str, most_bytes: int = 2**30) -> str:
    """Return a digest of a file; of one above `most_bytes` its size, its end and 4,096 blocks spread over it."""
    size = os.stat(path).st_size
    if size <= most_bytes:
        return file_digest(path)
    with open(path, "rb") as file:
        digest = hashlib.sha256(str(size).encode())
        for place in range(_BLOCKS):
            file.seek((size - _BLOCK) * place // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _left_out(found: dict[str, list[Any]], roles: dict[str, str], tree: Tree) -> list[str]:
    others = [split for split in found if split not in roles.values()]
    phrases = [f"the split {split!r} ({sum(len(rows) for rows in found[split]):,} rows)" for split in others]
    pictures = sum(len(paths) for paths in tree.direct.values())
    if pictures:
        phrases.append(f"{pictures:,} image files beside the parquet shards")
    return phrases + tree.left_out()


def _check_columns(shards: list[_Shard], image: str, label: str) -> None:
    from datasets import Value

    for shard in shards:
        for name in (image, label):
            if name not in shard.rows.features:
                raise UserError(f"a shard of the {shard.split} split has no column {name!r}")
        feature = shard.feature
        if isinstance(feature, Value):
            _check_values(shard)
        elif type(feature).__name__ != "ClassLabel":
            raise UserError(
                f"the column {label!r} of the {shard.split} split holds {type(feature).__name__}, not one class for "
                "each image; name another with --loader.label-column"
            )


def _check_values(shard: _Shard) -> None:
    """Raise UserError for labels that are no names or numbers of classes."""
    for row, value in enumerate(shard.values()):
        if (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"row {row} of the {shard.split} split has the label {value!r}, which names no class")


def _class_names(shards: list[_Shard]) -> tuple[str, ...]:
    """Return the classes of the training shards, in the order of the schema, or of the sorted values.

    Text is sorted by code point, numbers by value. Raises UserError for shards whose schemas name other classes.
    """
    schemas = [tuple(shard.feature.names) for shard in shards if _named(shard)]
    for names in schemas[1:]:
        if set(names) != set(schemas[0]):
            raise UserError(
                "the parquet shards of the training split name different classes: "
                + name_difference("one shard", schemas[0], "another", names)
            )
    if schemas:
        return schemas[0]
    values = {value for shard in shards for value in shard.values()}
    if len({type(value) for value in values}) > 1:
        raise UserError(f"the column {shards[0].label!r} holds labels of several types; a class is one type of value")
    largest_number({str(value) for value in values}, f"rows of the {shards[0].split} split")
    return tuple(str(value) for value in sorted(values))


def _named(shard: _Shard) -> bool:
    return type(shard.feature).__name__ == "ClassLabel"


def _numbers(shard: _Shard, names: tuple[str, ...]) -> list[int]:
    """Return the class numbers of a shard's rows, matched by name. Raises UserError for other classes.

    -1, the mark of a row whose label is not published, stays.
    """
    values = shard.values()
    number = {name: place for place, name in enumerate(names)}
    own = tuple(shard.feature.names) if _named(shard) else None
    numbers, unknown = [], set()
    for row, value in enumerate(values):
        if own is not None and value == -1:
            numbers.append(-1)
            continue
        if own is not None and not 0 <= value < len(own):
            raise UserError(
                f"row {row} of the {shard.split} split has the label {value}; its schema has {len(own)} classes"
            )
        name = str(value) if own is None else own[value]
        if name not in number:
            unknown.add(name)
        numbers.append(number.get(name, -1))
    if unknown:
        raise UserError(
            f"the {shard.split} split has the label {min(unknown)!r}, which the training split does not have; "
            + name_difference("the training split", names, f"the {shard.split} split", own or sorted(unknown))
        )
    return numbers


def _column(features: Any, named: str | None, kind: str, fits: Callable[[Any], bool]) -> str:
    if named is not None:
        if named not in features:
            raise UserError(f"the parquet data has no column {named!r}; it has {', '.join(features)}")
        return named
    found = next((name for name, feature in features.items() if fits(feature)), None)
    if found is None:
        raise UserError(
            f"no {kind} column in the parquet schema ({', '.join(features)}); name it with --loader.{kind}-column"
        )
    return str(found)
