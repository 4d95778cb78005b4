"""Corruptions of images at five severities, made at the size of the network's input."""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from crossdistill.types import BackboneSpec

SEVERITIES = (1, 2, 3, 4, 5)
_NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)
_BLUR = (0.010, 0.015, 0.020, 0.030, 0.045)
_JPEG = (40, 25, 15, 10, 6)
_PIXELS = (0.6, 0.5, 0.4, 0.3, 0.25)
_CONTRAST = (0.5, 0.4, 0.3, 0.2, 0.1)
_BRIGHTNESS = (1.3, 1.5, 1.7, 2.0, 2.4)
_DARKNESS = (0.6, 0.5, 0.4, 0.3, 0.2)


def _noise(image: Image.Image, severity: int) -> Image.Image:
    pixels = np.asarray(image, np.float32) / 255
    # The same noise for the same image, in every order and process.
    seed = int.from_bytes(hashlib.sha256(pixels.tobytes()).digest()[:8], "big")
    drawn = np.random.default_rng(seed).normal(0, _NOISE[severity - 1], pixels.shape)
    return Image.fromarray((255 * np.clip(pixels + drawn, 0, 1)).round().astype(np.uint8))


def _blur(image: Image.Image, severity: int) -> Image.Image:
    sigma = max(0.4, _BLUR[severity - 1] * min(image.size))
    blurred: Image.Image = F.gaussian_blur(image, [2 * round(3 * sigma) + 1] * 2, [sigma] * 2)
    return blurred


def _jpeg(image: Image.Image, severity: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG[severity - 1])
    return Image.open(buffer).convert(image.mode)


def _pixelate(image: Image.Image, severity: int) -> Image.Image:
    width, height = (max(1, round(side * _PIXELS[severity - 1])) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def _contrast(image: Image.Image, severity: int) -> Image.Image:
    changed: Image.Image = F.adjust_contrast(image, _CONTRAST[severity - 1])
    return changed


def _brighten(image: Image.Image, severity: int) -> Image.Image:
    changed: Image.Image = F.adjust_brightness(image, _BRIGHTNESS[severity - 1])
    return changed


def _darken(image: Image.Image, severity: int) -> Image.Image:
    changed: Image.Image = F.adjust_brightness(image, _DARKNESS[severity - 1])
    return changed


CORRUPTIONS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "noise": _noise,
    "blur": _blur,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "contrast": _contrast,
    "bright": _brighten,
    "dark": _darken,
}
"""By name: what changes an 8-bit image at a severity from 1 to 5. Ours; without the weather of ImageNet-C, whose
pictures are not free to copy. Its kinds are those of arXiv 1903.12261, the strengths are not, so results are not
comparable with published ones."""


class Corrupted:
    """A transform of evaluation followed by a corruption of the image that the network would see."""

    def __init__(self, transform: Callable[[Any], Tensor], spec: BackboneSpec, name: str, severity: int) -> None:
        self.transform, self.name, self.severity = transform, name, severity
        self.mean = torch.tensor(spec.mean).view(-1, 1, 1)
        self.std = torch.tensor(spec.std).view(-1, 1, 1)

    def __call__(self, image: Any) -> Tensor:
        """Make the tensor (C, H, W) of a corrupted image."""
        pixels = self.transform(image) * self.std + self.mean
        plain = F.to_pil_image((255 * pixels.clamp(0, 1)).round().to(torch.uint8))
        changed = CORRUPTIONS[self.name](plain, self.severity)
        tensor: Tensor = F.pil_to_tensor(changed).float() / 255
        return (tensor - self.mean) / self.std
