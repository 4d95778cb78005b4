"""Pixels to tensors, by the transforms of timm and torchvision."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm.data import create_transform
from torchvision import transforms as T

from crossdistill.config.data import AugmentConfig
from crossdistill.errors import UserError, first_line
from crossdistill.types import BackboneSpec


def padding(img_size: int) -> int:
    """Return the pixels that a padded crop adds on each side."""
    return max(1, img_size // 8)


def train_transform(config: AugmentConfig, spec: BackboneSpec, img_size: int) -> Callable[..., Any]:
    """Make the random transform of training images: PIL image in, tensor (C, H, W) normalised for the student out.

    Raises UserError for an augmentation policy that timm does not know.
    """
    crop = config.decided(img_size).crop
    try:
        # timm returns its pipeline in three parts: geometry, colour, tensor.
        geometry, colour, tensor = create_transform(
            (spec.in_chans, img_size, img_size),
            is_training=True,
            scale=config.scale,
            hflip=config.hflip,
            color_jitter=config.color_jitter,
            auto_augment=config.auto_augment,
            re_prob=config.erasing,
            re_mode="pixel",
            interpolation="bicubic",
            mean=spec.mean,
            std=spec.std,
            separate=True,
        )
    except (AssertionError, ValueError) as error:
        raise UserError(f"augment: timm does not accept {config.auto_augment!r} ({first_line(error)})") from error
    if crop != "resized":
        steps: list[Any] = [T.Resize((img_size, img_size), T.InterpolationMode.BICUBIC)]
        if crop == "padded":
            steps.append(T.RandomCrop(img_size, padding=padding(img_size)))
        if config.hflip > 0:
            steps.append(T.RandomHorizontalFlip(config.hflip))
        geometry = T.Compose(steps)
    return T.Compose([to_channels(spec.in_chans), geometry, colour, tensor])


def resize_transform(config: AugmentConfig, spec: BackboneSpec, img_size: int) -> Callable[..., Any]:
    """Make the fixed transform of training images that are augmented later, on the device."""
    return train_transform(replace(config, crop="none", hflip=0.0), spec, img_size)


def eval_transform(config: AugmentConfig, spec: BackboneSpec, img_size: int) -> Callable[..., Any]:
    """Make the fixed transform of validation and test images."""
    tensor = create_transform(
        (spec.in_chans, img_size, img_size),
        is_training=False,
        crop_pct=config.decided(img_size).crop_pct,
        interpolation="bicubic",
        mean=spec.mean,
        std=spec.std,
    )
    return T.Compose([to_channels(spec.in_chans), tensor])


def to_channels(in_chans: int) -> Callable[..., Any]:
    """Convert pictures to RGB or grey."""
    return T.Lambda(_to_rgb if in_chans == 3 else _to_grey)


def _to_rgb(image: Any) -> Any:
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_grey(image: Any) -> Any:
    return image if image.mode == "L" else image.convert("L")
