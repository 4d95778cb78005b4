"""One image as the array that a network reads, without torch: equal to timm's evaluation transform."""

import math
from typing import Any, Literal

import numpy as np
from PIL import Image

from crossdistill.config.validation import settings, validated
from crossdistill.data.picture import UnreadableError
from crossdistill.errors import UserError
from crossdistill.image_size import image_size

_FIELDS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
_MOST_PIXELS = 2**27
"""Pixels of a resized image before its centre is cut out: 384 MiB."""


@settings
class Preprocessing:
    """How evaluation makes an array of an image, in the terms of timm's `create_transform`."""

    input_size: tuple[int, int, int]
    """Channels (1 or 3), height and width in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: Literal["center", "squash"]
    interpolation: Literal["bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        channels, height, width = self.input_size
        image_size((height, width))
        if channels not in (1, 3) or not len(self.mean) == len(self.std) == channels:
            raise UserError(
                f"preprocessing: the input of {self.input_size} with {len(self.mean)} means is not an image"
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < one < math.inf for one in self.std):
            raise UserError(f"preprocessing: mean {self.mean} and std {self.std} must be finite, and std above 0")
        if not 0.1 <= self.crop_pct <= 1:
            raise UserError(f"preprocessing: crop_pct is {self.crop_pct}; it must lie between 0.1 and 1")

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width in pixels which a resized image covers before its centre is cut out."""
        _, height, width = self.input_size
        return math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)

    def pixels(self, image: Image.Image) -> Any:
        """Return an image (mode L or RGB) as uint8 (H, W, C), of any size, with the channels of the network."""
        values = np.asarray(image.convert("RGB" if self.input_size[0] == 3 else "L"))
        return values if values.ndim == 3 else values[:, :, None]

    def __call__(self, image: Image.Image) -> Any:
        """Return an image (mode L or RGB) as float32 (C, H, W), resized, cut and normalised."""
        image = image.convert("RGB" if self.input_size[0] == 3 else "L")
        new = self._new_size(image)
        if new[0] * new[1] > _MOST_PIXELS:
            raise UnreadableError(f"{image.width} x {image.height} px is too long: it would be {new[0]} x {new[1]}")
        image = image.resize(new, Image.Resampling.BICUBIC)
        _, height, width = self.input_size
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        values = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / np.float32(255)
        values = values.reshape(height, width, -1).transpose(2, 0, 1)
        mean, std = (np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return np.ascontiguousarray((values - mean) / std)

    def _new_size(self, image: Image.Image) -> tuple[int, int]:
        """Return width and height to which an image is resized."""
        height, width = self.resized
        if self.crop_mode == "squash":
            return width, height
        if height == width:
            short = min(image.size)
            return int(width * image.width / short), int(height * image.height / short)
        # timm rounds here, where torchvision cuts off.
        ratio = min(image.height / height, image.width / width)
        return round(image.width / ratio), round(image.height / ratio)


def read_preprocessing(stored: Any, owner: str) -> Preprocessing:
    """Read the preprocessing from an exported student's `config.json`, or from its part. Raises UserError.

    `owner` begins the message of an error.
    """
    found = stored
    for key in ("pretrained_cfg", "preprocessing"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            found = {name: value for name, value in stored[key].items() if name in _FIELDS}
    made: Preprocessing = validated(Preprocessing, found, owner)
    return made
