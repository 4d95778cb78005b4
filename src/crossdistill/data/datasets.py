"""Sources of images and labels: one reader for each kind of source, all with one interface."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from crossdistill.config.data import LoaderConfig
from crossdistill.errors import UserError

_FOLDER_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing", "eval"),
}
_HEADERS_CHECKED = 20_000
"""Number of image files whose header is read before training; larger sets are sampled."""


class Images(Protocol):
    """Images of one split. `read` decodes one picture; `labels` holds all class numbers, without decoding."""

    def __len__(self) -> int: ...
    def read(self, index: int) -> Image.Image:
        """Decode one picture."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Class numbers of all images."""
        ...


@dataclass(frozen=True)
class Source:
    """A data set: its splits by role (train always, val and test where it has them), and the class names."""

    name: str
    splits: dict[str, Images]
    class_names: tuple[str, ...]


class Part:
    """Some images of a split, by index."""

    def __init__(self, images: Images, indices: Any) -> None:
        self.images = images
        self.indices = np.asarray(indices)
        self.labels = np.asarray(images.labels)[self.indices].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Image.Image:
        """Decode one picture."""
        return self.images.read(int(self.indices[index]))


class Arrays:
    """Pictures in memory, (N, H, W) or (N, H, W, 3) uint8."""

    def __init__(self, pixels: Any, labels: Sequence[int]) -> None:
        self.pixels = pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """Return one picture."""
        return Image.fromarray(self.pixels[index])


class Files:
    """Picture files."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int]) -> None:
        self.paths = paths
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Image.Image:
        """Decode one file. Raises UserError, with its name, for a file that is no image."""
        path = self.paths[index]
        try:
            with open(path, "rb") as file:
                image = Image.open(file)
                image.load()
                return image
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"{path!r} cannot be read as an image: {error}") from error

    def check(self) -> None:
        """Read the headers of the files (an even sample of a large set). Raises UserError for one that is no image."""
        step = -(-len(self) // _HEADERS_CHECKED)
        for path in self.paths[::step]:
            try:
                Image.open(path).close()
            except (UnidentifiedImageError, OSError) as error:
                raise UserError(f"{path!r} is no image: remove or replace it ({error})") from error


class TorchSet:
    """A torchvision data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        labels = next((getattr(dataset, n) for n in ("targets", "labels", "_labels") if hasattr(dataset, n)), None)
        self.labels = [dataset[i][1] for i in range(len(dataset))] if labels is None else [int(v) for v in labels]

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Image.Image:
        """Return one picture."""
        image: Image.Image = self.dataset[index][0]
        return image


class Table:
    """Rows of a Hugging Face data set; pictures are decoded here, so a broken one is named."""

    def __init__(self, dataset: Any, image: str, label: str) -> None:
        from datasets import Image as ImageFeature

        self.dataset = dataset.select_columns([image]).cast_column(image, ImageFeature(decode=False))
        self.image = image
        self.labels = [int(v) for v in dataset.with_format("numpy", columns=[label])[label][:]]

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Image.Image:
        """Decode one row. Raises UserError for one that is no image."""
        cell = self.dataset[index][self.image]
        try:
            image = Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])
            image.load()
            return image
        except (UnidentifiedImageError, OSError, SyntaxError, TypeError) as error:
            raise UserError(f"row {index} of the parquet data cannot be read as an image: {error}") from error


def load_source(data: str, config: LoaderConfig) -> Source:
    """Open a data set by its name or folder. Raises UserError where it does not exist, or is empty."""
    if data == "digits":
        return _digits()
    if data.startswith("torch/"):
        return _torch_source(data, config)
    folder = Path(data)
    if not folder.exists():
        raise UserError(f"data {data!r}: no such folder (and neither 'digits' nor 'torch/<name>')")
    if not folder.is_dir():
        raise UserError(f"data {data!r} is a file; give the folder that holds the images or the parquet shards")
    if any(folder.rglob("*.parquet")):
        return _parquet_source(folder, config)
    return _folder_source(folder)


def _digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits, 8x8 grey: the embedded data. 30% of them are the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(np.arange(len(pixels)), test_size=0.3, random_state=0, stratify=bunch.target)
    splits: dict[str, Images] = {
        "train": Arrays(pixels[train], bunch.target[train].tolist()),
        "test": Arrays(pixels[test], bunch.target[test].tolist()),
    }
    return Source("digits", splits, tuple(str(d) for d in range(10)))


def _folder_source(folder: Path) -> Source:
    from timm.data.readers import create_reader

    found = {entry.name.lower(): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    roots = {role: next((found[n] for n in names if n in found), None) for role, names in _FOLDER_SPLITS.items()}
    if roots["train"] is None:
        if split := next((root for root in roots.values() if root is not None), None):
            raise UserError(f"{str(folder)!r} has {split.name!r} but no 'train'; without any split, give class folders")
        roots = {"train": folder, "val": None, "test": None}
    class_to_idx: dict[str, int] = {}
    splits: dict[str, Images] = {}
    for role, root in roots.items():
        if root is None:
            continue
        try:
            reader = create_reader("", root=str(root), class_map=class_to_idx or None)
        except RuntimeError as error:
            raise UserError(
                f"no images in {str(root)!r}; expected one folder per class with image files in it"
            ) from error
        class_to_idx = class_to_idx or dict(reader.class_to_idx)
        _check_class_folders(root, class_to_idx, [Path(path) for path, _ in reader.samples])
        files = Files([str(path) for path, _ in reader.samples], [label for _, label in reader.samples])
        files.check()
        splits[role] = files
    if len(class_to_idx) < 2:
        raise UserError(f"{str(folder)!r} has {len(class_to_idx)} class folder; a classifier needs at least 2")
    return Source(folder.name, splits, tuple(sorted(class_to_idx, key=lambda name: class_to_idx[name])))


def _check_class_folders(root: Path, class_to_idx: dict[str, int], paths: list[Path]) -> None:
    """Raise UserError for what timm's reader accepts silently: it knows a class by the name of its folder alone."""
    homes: dict[str, Path] = {}
    for path in paths:
        home = homes.setdefault(path.parent.name, path.parent)
        if path.parent == root:
            raise UserError(f"{str(path)!r} is in no class folder")
        if home != path.parent:
            raise UserError(
                f"class {home.name!r} has two folders, {str(home)!r} and {str(path.parent)!r}; is one a split?"
            )
    folders = {entry.name for entry in root.iterdir() if entry.is_dir()}
    nested = {home.relative_to(root).parts[0] for home in homes.values()}
    if empty := sorted(folders - nested - set(homes)):
        hint = "" if empty[0] in class_to_idx else ", or is a class that the training split does not have"
        raise UserError(f"class folder {empty[0]!r} of {str(root)!r} holds no images{hint}")


def _torch_source(data: str, config: LoaderConfig) -> Source:
    from timm.data import create_dataset

    splits: dict[str, Images] = {}
    names: tuple[str, ...] = ()
    for role, split in (("train", "train"), ("test", "validation")):
        try:
            dataset = create_dataset(data, root=config.root, split=split, download=config.download)
        except AssertionError as error:
            raise UserError(f"data {data!r}: {error}") from error
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data {data!r} is not under {config.root!r} and could not be downloaded: {str(error).splitlines()[0]}"
            ) from error
        splits[role] = TorchSet(dataset)
        names = names or tuple(str(name) for name in getattr(dataset, "classes", ()))
    count = max(max(images.labels) for images in splits.values()) + 1
    return Source(data, splits, names if len(names) >= count else tuple(str(i) for i in range(count)))


def _parquet_source(folder: Path, config: LoaderConfig) -> Source:
    try:
        import datasets
    except ImportError as error:
        raise UserError("reading parquet needs Hugging Face datasets: pip install 'crossdistill[parquet]'") from error
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(str(folder))
    except Exception as error:  # arrow, fsspec and datasets raise many kinds for a broken shard
        cause = str(error.__cause__ or error).splitlines()[0]
        raise UserError(f"the parquet shards in {str(folder)!r} cannot be read: {cause}") from error
    roles = {split: role for role, names in _FOLDER_SPLITS.items() for split in names}
    tables = {roles[split]: found[split] for split in found if split in roles}
    if "train" not in tables:
        raise UserError(f"{str(folder)!r} has the splits {', '.join(found)}; one must be train")
    features = tables["train"].features
    image = _column(features, config.image_column, "image", lambda f: isinstance(f, datasets.Image))
    label = _column(features, config.label_column, "label", lambda f: isinstance(f, datasets.ClassLabel))
    if not isinstance(features[label], datasets.ClassLabel):
        tables = _encode_labels(tables, label)
        features = tables["train"].features
    splits: dict[str, Images] = {role: Table(table, image, label) for role, table in tables.items()}
    return Source(folder.name, splits, tuple(features[label].names))


def _encode_labels(tables: dict[str, Any], label: str) -> dict[str, Any]:
    """Number plain labels by the sorted values of the training split (10 after 9), in the same way for all splits."""
    from datasets import ClassLabel

    values = sorted(set(tables["train"].unique(label)))
    known = {value: i for i, value in enumerate(values)}
    kind = ClassLabel(names=[str(value) for value in values])
    encoded = {}
    for role, table in tables.items():
        if extra := sorted(set(table.unique(label)) - set(known)):
            raise UserError(f"the {role} split has the label {extra[0]!r}, which the training split does not have")
        features = table.features.copy()
        features[label] = kind
        encoded[role] = table.map(lambda row: {label: known[row[label]]}, features=features)
    return encoded


def _column(features: Any, named: str | None, kind: str, fits: Any) -> str:
    if named is not None:
        if named not in features:
            raise UserError(f"the parquet data has no column {named!r}; it has {', '.join(features)}")
        return named
    found = next((name for name, feature in features.items() if fits(feature)), None)
    if found is None:
        raise UserError(
            f"no {kind} column in the parquet schema ({', '.join(features)}); name it with --loader.{kind}_column"
        )
    return str(found)
