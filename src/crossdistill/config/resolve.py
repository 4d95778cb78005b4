"""Decide every setting that is left to "auto" or null, from the data and the models."""

from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

from crossdistill.config.code import is_code, is_transformers
from crossdistill.config.data import SMALL_IMAGE, AugmentConfig, LoaderConfig
from crossdistill.config.model import Stem
from crossdistill.config.run import RunConfig
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize, image_size, sides_of, written

_SMALLEST = 32
"""Side in pixels to which smaller images are enlarged by default."""
_MOST_VIEWS = 10
_MOST_RESIDENT_BYTES = 2**30
"""Data sets above this size are read by workers unless loader.resident asks for more."""


class DataFacts(Protocol):
    """What the decisions depend on; `crossdistill.data.ImageData` has it."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def long(self) -> bool:
        """Whether at least half of the images are more than twice as long as they are short."""

    @property
    def channels(self) -> Literal[1, 3]:
        """Channels of the images."""

    @property
    def train(self) -> Sized:
        """Training images."""


def resolve(
    config: RunConfig,
    data: DataFacts,
    own_size: Callable[[str], ImageSize],
    run_size: Callable[[str], ImageSize | None] = lambda folder: None,
    has_small_stem: Callable[[str], bool] = lambda weights: False,
) -> RunConfig:
    """Return the same run with everything decided; resolving it again changes nothing.

    `own_size` returns the input size of a model by its name, `run_size` that of a finished run by its folder;
    `has_small_stem` says whether the weights of a file or folder are known to be those of a network with the small
    stem. Raises UserError for settings that exclude each other.
    """
    small = max(max(data.size), _SMALLEST) if max(data.size) <= SMALL_IMAGE else None
    if config.role == "teacher" and (config.model.student_pretrained or is_transformers(config.student)):
        small = None  # the size that its weights were trained for
    given = config.img_size or small
    img_size = image_size(given or own_size(config.student))
    model = replace(
        config.model,
        stem=_student_stem(config, img_size, has_small_stem),
        teacher_stem=_teacher_stem(config, img_size, has_small_stem),
        teacher_img_size=config.model.teacher_img_size or _teacher_sizes(config, given, own_size),
    )
    augment = config.augment.decided(img_size, long=data.long)
    seen = _teacher_sides(config.teachers, model.teacher_img_size, run_size)
    augment = replace(augment, teacher_view=_teacher_view(config, augment, sides_of(img_size), data.size, seen))
    loader = replace(config.loader, in_chans=config.loader.in_chans or data.channels)
    if config.cached and loader.views is None:
        loader = replace(loader, views=min(config.epochs, _MOST_VIEWS))
    images = len(data.train)
    loader = replace(loader, resident=_resident(loader, augment, img_size, data.channels, images))
    optim = replace(config.optim, warmup_epochs=min(config.optim.warmup_epochs, config.epochs / 10))
    engine = config.engine
    if engine.channels_last == "auto":
        engine = replace(engine, channels_last=not engine.sharded)
    return replace(
        config, img_size=written(img_size), model=model, augment=augment, loader=loader, optim=optim, engine=engine
    )


def _teacher_sizes(
    config: RunConfig, given: int | str | None, own_size: Callable[[str], ImageSize]
) -> list[int | str | None] | None:
    """Decide the input size of each teacher; None for those that are finished runs and know their own.

    Pretrained weights are used at the size that they were trained for; a file does not state one.
    """
    sizes: list[int | str | None] = []
    for name, checkpoint in config.teachers:
        if name is None or (checkpoint is not None and Path(checkpoint).is_dir()):
            sizes.append(None)
        elif checkpoint is None and (config.model.teacher_pretrained or is_transformers(name)):
            sizes.append(written(own_size(name)))
        else:
            sizes.append(given or written(own_size(name)))
    return sizes if any(sizes) else None


def _teacher_sides(
    teachers: Sequence[tuple[str | None, str | None]],
    sizes: int | str | list[int | str | None] | None,
    run_size: Callable[[str], ImageSize | None],
) -> list[tuple[int, int]]:
    """Return height and width of the teachers' inputs that are known."""
    listed = sizes if isinstance(sizes, list) else [sizes] * len(teachers)
    known = [
        size or (run_size(checkpoint) if checkpoint is not None and Path(checkpoint).is_dir() else None)
        for (_, checkpoint), size in zip(teachers, listed, strict=False)
    ]
    return [sides_of(size) for size in known if size is not None]


def _teacher_view(
    config: RunConfig,
    augment: AugmentConfig,
    sides: tuple[int, int],
    data: tuple[int, int],
    seen: Sequence[tuple[int, int]],
) -> Literal["own", "student"]:
    """Decide what the teacher sees, from height and width of the student's input, of the data and of the teachers'.

    Raises UserError where that is asked for and cannot be done.
    """
    larger = any(d > s for d, s in zip(data, sides, strict=True)) and any(
        own > side for one in seen for own, side in zip(one, sides, strict=True)
    )
    same = augment.crop_mode == "squash" or all(h * sides[1] == w * sides[0] for h, w in seen)
    given = config.augment.teacher_view
    resident = config.loader.resident is True
    if given == "own" and resident and config.teachers:
        raise UserError(
            "augment.teacher_view is 'own', but loader.resident keeps the images at the student's size; leave one of "
            "the two out"
        )
    if given == "own" and not same and config.teachers:
        raise UserError(
            "augment.teacher_view is 'own', but teacher and student have inputs of other proportions, and "
            "augment.crop_mode 'center' cuts other parts for them; give --augment.crop-mode squash, or leave it out"
        )
    if given == "student" or resident or not same or not config.teachers:
        return "student"
    return "own" if given == "own" or larger else "student"


def _student_stem(config: RunConfig, img_size: ImageSize, has_small_stem: Callable[[str], bool]) -> Stem:
    model = config.model
    if model.stem != "auto":
        return model.stem
    if model.student_checkpoint is not None:
        return "small" if has_small_stem(model.student_checkpoint) else "native"
    as_is = model.student_pretrained or is_transformers(config.student) or is_code(config.student)
    return _stem_of_new(img_size, built_as_is=as_is)


def _teacher_stem(config: RunConfig, img_size: ImageSize, has_small_stem: Callable[[str], bool]) -> Stem:
    """Decide the stem of teachers that are not finished runs, which know their own. Raises UserError."""
    stem = config.model.teacher_stem or config.model.stem
    if stem != "auto":
        return stem
    files = [one for _, one in config.teachers if one is not None and not Path(one).is_dir()]
    if not files:
        own_code = any(name is not None and is_code(name) for name, _ in config.teachers)
        return _stem_of_new(img_size, built_as_is=config.model.teacher_pretrained or own_code)
    small = [has_small_stem(file) for file in files]
    if len(set(small)) > 1:
        raise UserError(
            f"the weights {files[small.index(True)]!r} are of a network with the small stem, those of "
            f"{files[small.index(False)]!r} are not known to be; give the folders of the runs, or model.teacher_stem"
        )
    return "small" if small[0] else "native"


def _stem_of_new(img_size: ImageSize, *, built_as_is: bool) -> Stem:
    return "small" if max(sides_of(img_size)) <= SMALL_IMAGE and not built_as_is else "native"


def _resident(loader: LoaderConfig, augment: AugmentConfig, img_size: ImageSize, channels: int, images: int) -> bool:
    """Decide whether images are kept on the device. Raises UserError where that is asked for and cannot be done."""
    if loader.resident is False:
        return False
    obstacle = None
    for name in ("auto_augment", "color_jitter", "erasing"):
        if getattr(augment, name):
            obstacle = f"augment.{name} is {getattr(augment, name)!r}"
    if augment.crop == "resized":
        obstacle = "augment.crop is 'resized'"
    if augment.teacher_view == "own":
        obstacle = "augment.teacher_view is 'own'"
    if loader.resident and obstacle:
        raise UserError(
            f"loader.resident: {obstacle}, which is done image by image; on the device only padded crops and "
            "flips are possible (leave loader.resident out to let workers read the images)"
        )
    if obstacle is not None:
        return False
    height, width = sides_of(img_size)
    fits = max(height, width) <= SMALL_IMAGE and images * channels * height * width <= _MOST_RESIDENT_BYTES
    return bool(loader.resident) or fits
