"""The division of a data set into training, validation and test images."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from sklearn.model_selection import train_test_split

from crossdistill.config.data import LoaderConfig
from crossdistill.data.datasets import Images, Part, Source, base_of
from crossdistill.data.folder import Files
from crossdistill.data.look import MOST_BYTES, Look, look, place, unreadable_error
from crossdistill.data.mixed import with_unlabelled
from crossdistill.data.notes import describe
from crossdistill.data.picture import mostly_long
from crossdistill.data.sources import load_source
from crossdistill.data.split_list import Changes, SplitList, divided_by, make_split_list
from crossdistill.errors import UserError


@dataclass(frozen=True)
class ImageData:
    """A data set ready to train on.

    `val` chooses the model; `test` is used once, at the end. `channels` and `size` (the largest height and width in
    pixels) are read from its images.
    """

    name: str
    train: Images
    val: Images
    test: Images
    class_names: tuple[str, ...]
    channels: Literal[1, 3]
    size: tuple[int, int]
    long: bool = False
    """Whether at least half of the images are more than twice as long as they are short."""
    about: tuple[str, ...] = ()
    """Lines for the user: what was read, what was left out, and what looks wrong."""
    files: SplitList | None = None
    """The files of each split; None for data that is not read from files."""
    changes: Changes = field(default_factory=Changes)
    """What has changed since the run began whose list the division follows."""
    unreadable: int = 0
    """Number of images that were left out since they cannot be read."""

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


def load_data(
    data: str, config: LoaderConfig, listed: SplitList | None = None, *, most_bytes: int = MOST_BYTES
) -> ImageData:
    """Open a data set and divide it.

    A split of each role is used where the data has it. With one evaluation split beside train (ImageNet's val), that
    one is the test split, and val is held out of train: a fraction `val_fraction` of each class, chosen by
    `split_seed` and, for files, by their paths. Without any (or where its labels are all -1), the test split is held
    out of train in the same way. With `listed`, the list of an earlier run, all is divided as that run has. Copies
    are looked for where at most `most_bytes` have to be read. Raises UserError for data that cannot be read or is too
    small.
    """
    source = load_source(data, config)
    source, looks, wrong = _looked_at(source, config)
    changes = Changes()
    if listed is None:
        parts = _divided(source, config)
    else:
        source, parts, changes = divided_by(listed, source)
        if missing := [role for role in ("train", "val", "test") if role not in parts]:
            raise UserError(f"none of the {missing[0]} images of the run are in {data!r} any more")
    headers = [header for one in looks for header in one.headers]
    channels: Literal[1, 3] = 1 if all(header.grey for header in headers) else 3
    about = describe(
        source,
        parts,
        headers,
        config.in_chans or channels,
        most_bytes=most_bytes,
        labelled=config.labels == "classes",
    )
    loaded = ImageData(
        name=source.name,
        **parts,
        class_names=source.class_names,
        channels=config.in_chans or channels,
        size=(max(h.height for h in headers), max(h.width for h in headers)),
        long=mostly_long(headers),
        about=tuple(about),
        files=make_split_list(parts, source),
        changes=changes,
        unreadable=wrong,
    )
    if config.labels == "none":
        return without_labels(loaded)
    if config.unlabelled is None:
        return loaded
    others = load_data(config.unlabelled, _all_images(config, loaded.channels))
    return with_unlabelled(loaded, others, config.unlabelled)


def load_all(data: str, config: LoaderConfig, channels: Literal[1, 3]) -> list[Images]:
    """Open all images of a data set, without labels and undivided. Raises UserError for data that cannot be read."""
    plain = _all_images(config, channels)
    source, _, _ = _looked_at(load_source(data, plain), plain)
    return list(source.splits.values())


def _all_images(config: LoaderConfig, channels: Literal[1, 3]) -> LoaderConfig:
    """Return the settings that read all images of a set, without labels."""
    plain = replace(config, labels="none", unlabelled=None, in_chans=channels, max_train=None)
    return replace(plain, train_dir=None, val_dir=None, test_dir=None, image_column=None, label_column=None)


def _looked_at(source: Source, config: LoaderConfig) -> tuple[Source, list[Look], int]:
    """Look at all images, and leave out those that cannot be read; returns also their number.

    Raises UserError where none may be left out.
    """
    skip = config.on_bad_image == "skip"
    looks = {role: look(images, decode=skip) for role, images in source.splits.items()}
    wrong = [*source.unreadable]
    for role, images in source.splits.items():
        wrong += [(place(images, number), reason) for number, reason in looks[role].unreadable.items()]
    if not wrong:
        return source, list(looks.values()), 0
    if not skip:
        raise unreadable_error(*wrong[0], more=len(wrong) - 1)
    phrases = [f"{path!r}, which cannot be read as an image: {reason}" for path, reason in wrong]
    splits = {role: _without(images, looks[role].unreadable) for role, images in source.splits.items()}
    for role, images in splits.items():
        if not len(images):
            raise UserError(f"no image of the {role} split of {source.name!r} can be read: {wrong[0][1]}")
    return replace(source, splits=splits, left_out=(*source.left_out, *phrases)), list(looks.values()), len(wrong)


def _without(images: Images, numbers: Mapping[int, str]) -> Images:
    kept = [i for i in range(len(images)) if i not in numbers]
    if isinstance(images, Files):
        return Files(images.root, [images.keys[i] for i in kept], [images.labels[i] for i in kept])
    return Part(images, kept) if numbers else images


def _divided(source: Source, config: LoaderConfig) -> dict[str, Images]:
    train, val, test = (_labelled(source, role) for role in ("train", "val", "test"))
    assert train is not None
    if test is None and val is not None:
        test, val = val, None
    if test is None:
        train, test = _hold_out(train, config.val_fraction, config.split_seed + 1)
    if val is None:
        train, val = _hold_out(train, config.val_fraction, config.split_seed)
    absent = sorted(set(range(len(source.class_names))) - set(train.labels))
    if isinstance(base_of(train)[0], Files) and absent:
        raise UserError(f"no image of class {source.class_names[absent[0]]!r} is left to train on; add more of them")
    if config.max_train is not None and config.max_train < len(train):
        chosen = np.random.default_rng(config.split_seed).permutation(len(train))[: config.max_train]
        train = Part(train, np.sort(chosen))
        absent = sorted(set(range(len(source.class_names))) - set(train.labels))
        if isinstance(base_of(train)[0], Files) and absent:
            raise UserError(
                f"loader.max_train {config.max_train} leaves no image of class {source.class_names[absent[0]]!r} to "
                "train on; take more"
            )
    return {"train": train, "val": val, "test": test}


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
    if isinstance(base_of(images)[0], Files):
        return _hold_out_files(images, fraction, seed)
    labels = np.asarray(images.labels)
    indices = np.arange(len(labels))
    counts = np.bincount(labels)
    held = round(len(labels) * fraction)
    if held < 1 or len(labels) - held < 1:
        raise UserError(f"{len(labels)} images are too few to hold out a fraction of {fraction:g}")
    # Stratified where both parts can hold every class.
    fits = counts[counts > 0].min() >= 2 and min(held, len(labels) - held) >= (counts > 0).sum()
    kept, out = train_test_split(indices, test_size=held, random_state=seed, stratify=labels if fits else None)
    return Part(images, np.sort(kept)), Part(images, np.sort(out))


def _hold_out_files(images: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Hold out the files of each class whose paths have the smallest digests, so that added files move few others.

    Of each class that is the rounded fraction, at least one file, and none of a class with a single one.
    """
    base, chosen = base_of(images)
    assert isinstance(base, Files)
    members: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
    for number, index in enumerate(chosen):
        key = f"{seed}/{base.keys[index]}".encode("utf-8", "surrogateescape")
        members[images.labels[number]].append((hashlib.sha256(key).digest(), number))
    held: list[int] = []
    for same in members.values():
        count = min(max(int(len(same) * fraction + 0.5), 1), len(same) - 1)
        held += [number for _, number in sorted(same)[:count]]
    if not held or len(held) == len(images):
        raise UserError(f"{len(images)} images are too few to hold out a fraction of {fraction:g}")
    return Part(images, sorted(set(range(len(images))) - set(held))), Part(images, sorted(held))
