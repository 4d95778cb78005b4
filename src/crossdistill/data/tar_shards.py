"""Tar shards in the layout of WebDataset: files with the same name up to the first dot are one sample.

The headers of all shards are read once, when the data is opened. Images are then read by their place in the shard, in
any order, so seeded views, resuming and the teacher cache hold as for files. The label is the file `.cls`, or an entry
of the file `.json`; numbers are named by the lines of `classnames.txt` where the folder has one.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.config.data import LoaderConfig
from crossdistill.data.class_names import largest_number, sorted_classes
from crossdistill.data.datasets import Images, Source
from crossdistill.data.listed import LABELS
from crossdistill.data.rows import Rows
from crossdistill.data.shards import roles_of, shard_files
from crossdistill.data.tar_samples import Sample, is_image, place_of, read_samples
from crossdistill.data.tree import Tree
from crossdistill.errors import UserError, first_line

CLASS_NAMES = "classnames.txt"


class Samples(Rows):
    """The images of a split, by their places in the shards."""

    def __init__(self, split: str, shards: Sequence[str]) -> None:
        super().__init__((), split)
        self.shards = list(shards)
        self.keys: list[str] = []
        self.places: NDArray[np.int64] = np.empty((0, 3), np.int64)

    @property
    def nbytes(self) -> int:
        """Size of all images in bytes."""
        return int(self.places[:, 2].sum())

    def cells(self, indices: Sequence[int]) -> Iterator[Any]:
        """Yield the stored images of some samples, not decoded."""
        for index in indices:
            shard, start, size = self.places[index].tolist()
            with open(self.shards[shard], "rb") as file:
                file.seek(start)
                yield {"bytes": file.read(size)}

    def place(self, index: int) -> str:
        """Name one sample."""
        return place_of(self.keys[index], self.shards[self.places[index, 0]])


def tar_source(folder: Path, tree: Tree, config: LoaderConfig) -> Source:
    """Open tar shards. Raises UserError."""
    found = shard_files(tree.tar)
    roles = roles_of(found, folder)
    splits: dict[str, Images] = {}
    names: tuple[str, ...] = ("image",)
    number: dict[str, int] = {}
    label: tuple[str, str | None] | None = None
    beside: Counter[str] = Counter()
    rest = tree
    for role, split in sorted(roles.items(), key=lambda pair: pair[0] != "train"):
        images, values, label = _read_split(split, [folder / path for path in found[split]], config, beside, label)
        splits[role] = images
        if role == "train" and config.labels == "classes":
            names, number, listed = _class_names(folder, values)
            # The file that was read is none of the files that are left out.
            rest = replace(tree, others=tree.others - Counter([".txt"])) if listed else tree
        images.labels = _numbers(images, values, number, role) if config.labels == "classes" else [0] * len(values)
    others = [f"the split {split!r} ({len(found[split])} shards)" for split in found if split not in roles.values()]
    kinds = ", ".join(f".{ending} {count:,}" for ending, count in sorted(beside.items()))
    left_out = [*others, *([f"files beside the images in the shards ({kinds})"] if kinds else [])]
    if pictures := sum(len(paths) for paths in tree.direct.values()):
        left_out.append(f"{pictures:,} image files beside the tar shards")
    return Source(folder.resolve().name, splits, names, (*left_out, *rest.left_out()))


def _read_split(
    split: str,
    paths: Sequence[Path],
    config: LoaderConfig,
    beside: Counter[str],
    label: tuple[str, str | None] | None,
) -> tuple[Samples, list[str], tuple[str, str | None] | None]:
    """Read the headers of all shards of a split: the places of its images, and their labels as text.

    `label` says where the labels are, and is returned; None finds it in the first sample.
    """
    images = Samples(split, [str(path) for path in paths])
    places: list[tuple[int, int, int]] = []
    values: list[str] = []
    for number, path in enumerate(paths):
        samples = read_samples(path)
        if config.labels == "classes":
            label = label or _label_place(samples[0], config.label_column)
        for sample in samples:
            ending = _image_of(sample, config.image_column)
            images.keys.append(sample.key)
            places.append((number, *sample.files.pop(ending)))
            values.append("" if label is None else _label(sample, *label))
            if label is not None:
                sample.files.pop(label[0], None)
            beside.update(sample.files.keys())
    images.places = np.array(places, dtype=np.int64).reshape(-1, 3)
    return images, values, label


def _image_of(sample: Sample, named: str | None) -> str:
    """Return the ending of a sample's image. Raises UserError unless there is exactly one."""
    if named is not None:
        found = [named.lower().lstrip(".")]
        if found[0] not in sample.files:
            raise UserError(f"{sample} has no file .{found[0]}; it has {sample.endings}")
        return found[0]
    found = [ending for ending in sample.files if is_image(ending)]
    if len(found) != 1:
        many = "several images" if found else "no image"
        if set(sample.files) == {""}:
            raise UserError(f"{sample} is a file without an ending, so it is not known what it holds: leave it out")
        raise UserError(f"{sample} has {many} ({sample.endings}); name the ending with --loader.image-column")
    return found[0]


def _label_place(sample: Sample, named: str | None) -> tuple[str, str | None]:
    """Return the ending of the file that holds the labels, and the name of the entry in it for JSON."""
    plain = None if named is None else named.lstrip(".")
    if plain is None and "cls" in sample.files:
        return "cls", None
    if plain is not None and plain.lower() in sample.texts and plain.lower() != "json":
        return plain.lower(), None
    entries = _entries(sample) if "json" in sample.files else {}
    found = plain if plain in entries else None
    if plain is None:
        found = next((name for name in entries if name.lower() in (*LABELS, "cls")), None)
    if found is None:
        inside = f"; .json has {', '.join(entries)}" if entries else ""
        raise UserError(
            f"{sample} has no label {'.cls' if named is None else repr(named)} ({sample.endings}{inside}); name the "
            "ending, or the entry of .json, with --loader.label-column, or train without labels (--loader.labels none)"
        )
    return "json", found


def _entries(sample: Sample) -> dict[str, Any]:
    if "json" in sample.files and "json" not in sample.texts:
        raise UserError(f"the file .json of {sample} has more than 1 MiB, so no label is looked for in it")
    try:
        entries = json.loads(sample.texts.get("json", b""))
    except ValueError as error:
        raise UserError(f"the file .json of {sample} cannot be read: {first_line(error)}") from error
    return entries if isinstance(entries, dict) else {}


def _label(sample: Sample, ending: str, entry: str | None) -> str:
    value: Any = None
    if entry is not None:
        value = _entries(sample).get(entry)
    elif ending in sample.texts:
        value = sample.texts[ending].decode("utf-8-sig", "replace").strip()
    known = isinstance(value, str | int) and not isinstance(value, bool) and bool(str(value).strip())
    if not known or "�" in str(value):
        where = f".{ending}" if entry is None else f"{entry!r} of .json"
        raise UserError(f"{sample} has no label in {where}" + ("" if value in (None, "") else f": {value!r}"))
    return str(value).strip()


def _class_names(folder: Path, values: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int], bool]:
    """Return the classes, the number of each label, and whether classnames.txt was read.

    The classes are the lines of classnames.txt, which numbers count from 0; without it the labels themselves, numbers
    by value and text by code point.
    """
    found = set(values)
    if len(found) < 2:
        raise UserError(f"the tar shards in {str(folder)!r} hold {len(found)} class; a classifier needs at least 2")
    file, largest = folder / CLASS_NAMES, largest_number(found, f"the tar shards in {str(folder)!r}")
    if largest is None or not file.is_file():
        names = sorted_classes(found)
        return names, {name: place for place, name in enumerate(names)}, False
    lines = _read_class_list(file)
    if len(set(lines)) < len(lines) or "" in lines or largest >= len(lines):
        names_in = f"{str(file)!r} has {len(lines)} lines with {len(set(lines) - {''})} different names"
        raise UserError(f"{names_in}; the labels count from 0 to {largest}")
    return lines, {name: int(name) for name in found} | {str(place): place for place in range(len(lines))}, True


def _read_class_list(file: Path) -> tuple[str, ...]:
    """Read the names in the lines of a file; empty lines at its end are left out. Raises UserError."""
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{str(file)!r} cannot be read: {first_line(error)}") from error
    return tuple(line.strip() for line in lines)


def _numbers(images: Samples, values: Sequence[str], number: Mapping[str, int], role: str) -> list[int]:
    """Return the class number of each label. Raises UserError for one that the training split does not have.

    -1, the mark of an image whose label is not published, stays.
    """
    for place, value in enumerate(values):
        if value not in number and (value != "-1" or role == "train"):
            raise UserError(f"{images.place(place)} ({role}) has the label {value!r}, which no training image has")
    return [number.get(value, -1) for value in values]
