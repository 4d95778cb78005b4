"""Pixels to tensors, by the transforms of timm and torchvision."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from timm.data import create_transform
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F

from crossdistill.config.data import AugmentConfig
from crossdistill.errors import UserError, first_line
from crossdistill.image_size import ImageSize, sides_of
from crossdistill.types import BackboneSpec

INTERPOLATION = "bicubic"
_RATIO = (3 / 4, 4 / 3)
"""Width divided by height of a random crop, as in timm and torchvision: relative to the input's, or where images are
squashed to the image's own."""


def padding(img_size: ImageSize) -> tuple[int, int]:
    """Return the pixels that a padded crop adds above and below, and on the left and the right."""
    height, width = sides_of(img_size)
    return max(1, height // 8), max(1, width // 8)


def train_transform(
    config: AugmentConfig, spec: BackboneSpec, img_size: ImageSize, drawn_size: ImageSize | None = None
) -> Callable[..., Any]:
    """Make the random transform of training images: PIL image in, tensor (C, H, W) normalised for the student out.

    With `drawn_size`, it shows what the transform for that size shows of an image after the same seed, at `img_size`.
    Raises UserError for an augmentation policy that timm does not know.
    """
    drawn_size = drawn_size or img_size
    config = config.decided(drawn_size)
    height, width = sides_of(drawn_size)
    try:
        # timm returns its pipeline in three parts: geometry, colour, tensor.
        geometry, colour, tensor = create_transform(
            (spec.in_chans, *sides_of(img_size)),
            is_training=True,
            scale=config.scale,
            ratio=tuple(ratio * (width / height) for ratio in _RATIO),
            hflip=config.hflip,
            color_jitter=config.color_jitter,
            auto_augment=config.auto_augment,
            re_prob=config.erasing,
            re_mode="pixel",
            interpolation=INTERPOLATION,
            mean=spec.mean,
            std=spec.std,
            separate=True,
        )
    except (AssertionError, ValueError) as error:
        raise UserError(f"augment: timm does not accept {config.auto_augment!r} ({first_line(error)})") from error
    if config.crop != "resized" or config.crop_mode == "squash":
        geometry = _whole_image_geometry(config, img_size, drawn_size)
    if config.erasing and drawn_size != img_size:
        *steps, erasing = tensor.transforms
        tensor = T.Compose([*steps, ScaledErasing(erasing, drawn_size)])
    return T.Compose([to_channels(spec.in_chans), geometry, colour, tensor])


def sufficient_side(config: AugmentConfig, img_size: ImageSize) -> int:
    """Return the side in pixels from which an image has the resolution that training needs.

    The smallest crop is then not enlarged, and the whole image has twice the size of the network's input. Scored images
    are always decoded whole, as timm does.
    """
    config = config.decided(img_size)
    smallest = math.sqrt(config.scale[0] * _RATIO[0]) if config.crop == "resized" else 1.0
    return math.ceil(max(sides_of(img_size)) * max(2.0, 1 / smallest))


def _whole_image_geometry(config: AugmentConfig, img_size: ImageSize, drawn_size: ImageSize) -> Callable[..., Any]:
    """Make the random geometry of images that are squashed to the input, and those that are padded or not cropped."""
    sides = sides_of(img_size)
    steps: list[Any] = []
    if config.crop == "resized":
        steps.append(SquashedCrop(img_size, config.scale))
    elif config.crop_mode == "squash":
        steps.append(T.Resize(sides, T.InterpolationMode.BICUBIC))
    elif isinstance(img_size, int):
        steps += [T.Resize(img_size, T.InterpolationMode.BICUBIC), T.CenterCrop(img_size)]
    else:
        steps += [ResizeKeepRatio(sides, interpolation=INTERPOLATION), T.CenterCrop(sides)]
    if config.crop == "padded" and drawn_size == img_size:
        above, beside = padding(img_size)
        steps.append(T.RandomCrop(sides, padding=(beside, above)))
    elif config.crop == "padded":
        steps.append(ScaledPaddedCrop(img_size, drawn_size))
    if config.hflip > 0:
        steps.append(T.RandomHorizontalFlip(config.hflip))
    return T.Compose(steps)


class SquashedCrop:
    """A random resized crop whose proportions are relative to those of the image, as if it were squashed first."""

    def __init__(self, img_size: ImageSize, scale: tuple[float, float]) -> None:
        self.sides = sides_of(img_size)
        self.scale = list(scale)

    def __call__(self, image: Any) -> Any:
        """Crop and resize a PIL image."""
        long = image.width / image.height
        box = T.RandomResizedCrop.get_params(image, self.scale, [long * ratio for ratio in _RATIO])
        return F.resized_crop(image, *box, list(self.sides), T.InterpolationMode.BICUBIC)


class ScaledPaddedCrop:
    """The padded crop of images of another size, at this one: shifted by the same part of a side, to the pixel."""

    def __init__(self, img_size: ImageSize, drawn_size: ImageSize) -> None:
        self.sides = sides_of(img_size)
        self.drawn_sides = sides_of(drawn_size)

    def __call__(self, image: Any) -> Any:
        """Crop a PIL image after padding it with black."""
        top, left = (
            # torchvision's RandomCrop draws these numbers.
            round((int(torch.randint(0, 2 * around + 1, size=(1,))) - around) * side / drawn)
            for around, side, drawn in zip(padding(self.drawn_sides), self.sides, self.drawn_sides, strict=True)
        )
        # Outside of the image F.crop pads with black.
        return F.crop(image, top, left, *self.sides)


class ScaledErasing:
    """The random erasing of images of another size, at this one: the same part of the image, filled with noise."""

    def __init__(self, erasing: Callable[[Tensor], Tensor], drawn_size: ImageSize) -> None:
        self.erasing = erasing
        self.drawn_sides = sides_of(drawn_size)

    def __call__(self, image: Tensor) -> Tensor:
        """Erase a part of a tensor (C, H, W)."""
        marked = self.erasing(image.new_zeros(len(image), *self.drawn_sides)).ne(0).any(dim=0)
        where = F.resize(marked[None].float(), list(image.shape[1:]), T.InterpolationMode.NEAREST)[0].bool()
        return torch.where(where, torch.randn_like(image), image)


def resize_transform(config: AugmentConfig, spec: BackboneSpec, img_size: ImageSize) -> Callable[..., Any]:
    """Make the fixed transform of training images that are augmented later, on the device."""
    return train_transform(replace(config, crop="none", hflip=0.0), spec, img_size)


def eval_transform(config: AugmentConfig, spec: BackboneSpec, img_size: ImageSize) -> Callable[..., Any]:
    """Make the fixed transform of validation and test images."""
    tensor = create_transform(**preprocessing(config, spec, img_size), is_training=False)
    return T.Compose([to_channels(spec.in_chans), tensor])


def preprocessing(config: AugmentConfig, spec: BackboneSpec, img_size: ImageSize) -> dict[str, Any]:
    """Return how evaluation makes a tensor of an image, in the terms of timm's `create_transform`."""
    config = config.decided(img_size)
    return dict(
        input_size=(spec.in_chans, *sides_of(img_size)),
        interpolation=INTERPOLATION,
        mean=spec.mean,
        std=spec.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )


def to_channels(in_chans: int) -> Callable[..., Any]:
    """Convert images to RGB or grey."""
    return T.Lambda(_to_rgb if in_chans == 3 else _to_grey)


def _to_rgb(image: Any) -> Any:
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_grey(image: Any) -> Any:
    return image if image.mode == "L" else image.convert("L")
