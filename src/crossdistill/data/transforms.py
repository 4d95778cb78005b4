"""Pixels to tensors, by timm's and torchvision's transforms."""

from collections.abc import Callable
from typing import Any

from timm.data import create_transform
from torchvision import transforms as T

from crossdistill.config import AugmentConfig
from crossdistill.types import BackboneSpec

SMALL_IMAGE = 64
"""Side in pixels up to which images count as small: cropped after padding, looked at whole."""


def crop_kind(config: AugmentConfig, img_size: int) -> str:
    """Say how training images are cropped: "resized", "padded" or "none"."""
    if config.crop != "auto":
        return config.crop
    return "padded" if img_size <= SMALL_IMAGE else "resized"


def padding(img_size: int) -> int:
    """Give the pixels that a padded crop adds on each side."""
    return max(1, img_size // 8)


def train_transform(config: AugmentConfig, spec: BackboneSpec, img_size: int) -> Callable[..., Any]:
    """Make the random transform of training images: PIL image in, tensor (C, H, W) normalised for the student out."""
    crop = crop_kind(config, img_size)
    # timm gives its pipeline as three parts: geometry, colour, tensor.
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
    if crop != "resized":
        steps: list[Any] = [T.Resize((img_size, img_size), T.InterpolationMode.BICUBIC)]
        if crop == "padded":
            steps.append(T.RandomCrop(img_size, padding=padding(img_size)))
        if config.hflip > 0:
            steps.append(T.RandomHorizontalFlip(config.hflip))
        geometry = T.Compose(steps)
    return T.Compose([to_channels(spec.in_chans), geometry, colour, tensor])


def eval_transform(config: AugmentConfig, spec: BackboneSpec, img_size: int) -> Callable[..., Any]:
    """Make the fixed transform of validation and test images."""
    crop_pct = config.crop_pct or (1.0 if img_size <= SMALL_IMAGE else 0.875)
    tensor = create_transform(
        (spec.in_chans, img_size, img_size),
        is_training=False,
        crop_pct=crop_pct,
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
