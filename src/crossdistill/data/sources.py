"""Open a data set by its name or folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from crossdistill.config.data import LoaderConfig
from crossdistill.config.files import SETS
from crossdistill.data.datasets import Arrays, Images, Source
from crossdistill.data.folder import folder_source, has_class_folders, unlabelled_source
from crossdistill.data.listed import LISTS, listed_source
from crossdistill.data.picture import UnreadableError, picture_suffixes, standard
from crossdistill.data.shards import is_named_as_split
from crossdistill.data.tar_shards import CLASS_NAMES, tar_source
from crossdistill.data.tree import Tree, scan
from crossdistill.errors import UserError, first_line

_HUB_FILES = ["*.parquet", "*.tar", *(f"*{suffix}" for suffix in sorted(picture_suffixes())), CLASS_NAMES]
"""Patterns of the files that are downloaded of a data set of the hub."""


class TorchSet:
    """A torchvision data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        labels = next((getattr(dataset, n) for n in ("targets", "labels", "_labels") if hasattr(dataset, n)), None)
        self.labels: Sequence[int] = (
            [dataset[i][1] for i in range(len(dataset))] if labels is None else [int(v) for v in labels]
        )
        self.class_names = tuple(str(name) for name in getattr(dataset, "classes", ()))

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Return one image. Raises UserError for one that cannot be used."""
        try:
            return standard(self.dataset[index][0])
        except UnreadableError as error:
            raise UserError(f"image {index} of the data set cannot be read: {error}") from error


def load_source(data: str, config: LoaderConfig) -> Source:
    """Open a data set by its name or folder. Raises UserError where it does not exist, or is empty."""
    if data == "digits":
        own = ("'./digits': 'digits' is scikit-learn's set",) if Path(data).exists() else ()
        return replace(_digits(), left_out=own)
    if data.startswith(SETS) and Path(data).exists():
        raise UserError(
            f"data {data!r} names a set, but there is a folder of that name: give './{data}' for the folder"
        )
    if data.startswith("torch/"):
        return _torch_source(data, config)
    if data.startswith("hfds/"):
        return replace(_folder_source(_hub_folder(data, config), config), name=data)
    if not data.strip():
        raise UserError(
            "data is empty; give a folder, a list of images, 'digits', 'torch/<name>' or 'hfds/<name>' ('.' is this "
            "folder)"
        )
    folder = Path(data)
    _check_utf8(data)
    if not folder.exists():
        raise UserError(f"data {data!r}: no such folder (and not 'digits', 'torch/<name>' or 'hfds/<name>')")
    if folder.is_file() and folder.suffix.lower() in LISTS:
        return listed_source(folder, config)
    if not folder.is_dir():
        raise UserError(
            f"data {data!r} is a file; give the folder that holds the images or the parquet shards, or a list of "
            f"images ({', '.join(LISTS)})"
        )
    return _folder_source(folder, config)


def _folder_source(folder: Path, config: LoaderConfig) -> Source:
    tree = scan(folder)
    shards = _shards(tree)
    if shards == "parquet":
        from crossdistill.data.parquet import parquet_source

        return parquet_source(folder, tree, config)
    if shards == "tar":
        return tar_source(folder, tree, config)
    return unlabelled_source(tree, config) if config.labels == "none" else folder_source(tree, config)


def _hub_folder(data: str, config: LoaderConfig) -> Path:
    """Return the folder of a data set of the Hugging Face hub, downloaded if it is not in the hub's cache yet.

    Only images, parquet and tar shards are taken; code in a repository is not run. Raises UserError.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"data {data!r} needs huggingface_hub: pip install 'crossdistill[parquet]'") from error
    name, _, revision = data.removeprefix("hfds/").partition("@")
    owner, _, rest = name.partition("/")
    set_name, _, below = rest.partition("/")
    patterns = [f"{below}/{one}" if below else one for one in _HUB_FILES]
    try:
        folder = snapshot_download(
            f"{owner}/{set_name}".rstrip("/"),
            repo_type="dataset",
            revision=revision or None,
            allow_patterns=patterns,
            local_files_only=not config.download,
        )
    except Exception as error:  # the hub raises many kinds: no network, no such set, no access
        hint = "" if config.download else " (loader.download is false)"
        raise UserError(f"data {data!r} cannot be had from the hub{hint}: {first_line(error)}") from error
    if not Path(folder, below).is_dir():
        raise UserError(f"data {data!r}: the set has no folder {below!r} with images or shards")
    return Path(folder, below)


def _check_utf8(data: str) -> None:
    try:
        data.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"data {data!r}: the name of the folder is not UTF-8: rename it") from None


def _shards(tree: Tree) -> Literal["parquet", "tar"] | None:
    """Return the kind of shards that a folder holds, if it is one. Raises UserError where it could be of two kinds."""
    kinds: dict[Literal["parquet", "tar"], list[str]] = {"parquet": tree.parquet, "tar": tree.tar}
    if tree.parquet and tree.tar:
        raise UserError(f"{str(tree.root)!r} holds parquet and tar shards; keep them in two folders")
    kind = next((name for name, paths in kinds.items() if paths), None)
    if kind is None or not has_class_folders(tree):
        return kind
    shards = [path for path in kinds[kind] if is_named_as_split(path)]
    if shards:
        raise UserError(
            f"{str(tree.root)!r} holds {kind} shards ({shards[0]!r}) and class folders with images; keep them in two "
            "folders, and give one of these"
        )
    return None


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


def _torch_source(data: str, config: LoaderConfig) -> Source:
    from timm.data import create_dataset

    if data in ("torch/image_folder", "torch/folder"):
        raise UserError(f"data {data!r}: give the folder itself as --data")
    splits: dict[str, TorchSet] = {}
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
    train, test = splits["train"], splits["test"]
    if _are_the_same(train, test):
        raise UserError(f"data {data!r} has no test split: timm's training and validation splits are the same images")
    if train.class_names and test.class_names and train.class_names != test.class_names:
        number = {name: place for place, name in enumerate(train.class_names)}
        if missing := sorted(set(test.class_names) - number.keys()):
            raise UserError(f"the test split of {data!r} has the class {missing[0]!r}, which no training image has")
        test.labels = [number[test.class_names[label]] for label in test.labels]
    count = max(max(images.labels) for images in splits.values()) + 1
    names = train.class_names
    return Source(data, dict(splits), names if len(names) >= count else tuple(str(i) for i in range(count)))


def _are_the_same(first: TorchSet, second: TorchSet) -> bool:
    if list(first.labels) != list(second.labels):
        return False
    some = range(0, len(first), max(1, len(first) // 16))
    return all(first.read(index).tobytes() == second.read(index).tobytes() for index in some)
