"""The division of a data set into training, validation and test images."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from sklearn.model_selection import train_test_split

from crossdistill.config.data import LoaderConfig
from crossdistill.data.datasets import Images, Part, Source, load_source
from crossdistill.errors import UserError


@dataclass(frozen=True)
class ImageData:
    """A data set ready to train on.

    `val` chooses the model; `test` is used once, at the end. `channels` and `size` (height, width in pixels) are read
    from its pictures.
    """

    name: str
    train: Images
    val: Images
    test: Images
    class_names: tuple[str, ...]
    channels: Literal[1, 3]
    size: tuple[int, int]

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.class_names)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.class_names)


class WithoutLabels(Part):
    """Images whose labels are ignored; all are -1."""

    def __init__(self, images: Images) -> None:
        super().__init__(images, np.arange(len(images)))
        self.labels = [-1] * len(images)


def without_labels(data: ImageData) -> ImageData:
    """Return the same data set without its labels and class names."""
    train, val, test = (WithoutLabels(images) for images in (data.train, data.val, data.test))
    return replace(data, train=train, val=val, test=test, class_names=())


def load_data(data: str, config: LoaderConfig) -> ImageData:
    """Open a data set and divide it.

    A split of each role is used where the data has it. With one evaluation split beside train (ImageNet's val), that
    one is the test split, and val is held out of train: a share `val_fraction`, stratified by class, chosen by
    `split_seed`. Without any (or where its labels are all -1), the test split is held out of train in the same way.
    Raises UserError for data that cannot be read or is too small.
    """
    source = load_source(data, config)
    train, val, test = (_labelled(source, role) for role in ("train", "val", "test"))
    assert train is not None
    if test is None and val is not None:
        test, val = val, None
    if test is None:
        train, test = _hold_out(train, config.val_fraction, config.split_seed + 1)
    if val is None:
        train, val = _hold_out(train, config.val_fraction, config.split_seed)
    if config.max_train is not None and config.max_train < len(train):
        chosen = np.random.default_rng(config.split_seed).permutation(len(train))[: config.max_train]
        train = Part(train, np.sort(chosen))
    # Spread over the split, since a sorted folder begins with one class.
    some = np.linspace(0, len(train) - 1, min(16, len(train))).round().astype(int).tolist()
    first = [train.read(i) for i in some]
    channels: Literal[1, 3] = 1 if all(image.mode in ("L", "1", "I;16") for image in first) else 3
    loaded = ImageData(
        name=source.name,
        train=train,
        val=val,
        test=test,
        class_names=source.class_names,
        channels=config.in_chans or channels,
        size=(max(i.height for i in first), max(i.width for i in first)),
    )
    return without_labels(loaded) if config.labels == "none" else loaded


def _labelled(source: Source, role: str) -> Images | None:
    images = source.splits.get(role)
    if images is None:
        return None
    labels = np.asarray(images.labels)
    if role != "train" and (labels == -1).all():
        return None  # Hugging Face's mark of a split whose labels are not published
    wrong = np.flatnonzero((labels < 0) | (labels >= len(source.class_names)))
    if len(wrong):
        raise UserError(
            f"image {wrong[0]} of the {role} split of {source.name!r} has the label {labels[wrong[0]]}; there are "
            f"{len(source.class_names)} classes, from 0"
        )
    return images


def _hold_out(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    labels = np.asarray(images.labels)
    indices = np.arange(len(labels))
    counts = np.bincount(labels)
    held = round(len(labels) * fraction)
    if held < 1 or len(labels) - held < 1:
        raise UserError(f"{len(labels)} images are too few to hold out a share of {fraction:g}")
    # Stratified where both parts can hold every class.
    fits = counts[counts > 0].min() >= 2 and min(held, len(labels) - held) >= (counts > 0).sum()
    kept, out = train_test_split(indices, test_size=held, random_state=seed, stratify=labels if fits else None)
    return Part(images, np.sort(kept)), Part(images, np.sort(out))
