"""Small images that are kept on the device as bytes and augmented there, a batch at a time."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from crossdistill.config.data import AugmentConfig
from crossdistill.data.datasets import Images
from crossdistill.data.loaders import Key, send
from crossdistill.data.transforms import padding
from crossdistill.types import BackboneSpec, Batch

_DECODED_AT_ONCE = 512


class ResidentViews(Dataset[Any]):
    """Views of images that are kept as one uint8 tensor on the device.

    `plain` is the fixed transform that resizes an image. With `augment`, a view is cropped after padding and flipped,
    by numbers that are a function of (seed, image, view) alone: the same on every device, in any batch. It returns
    whole batches for lists of keys (`__getitems__`, which torch's loaders prefer); nothing waits for the device.
    """

    def __init__(
        self,
        images: Images,
        plain: Callable[..., Any],
        spec: BackboneSpec,
        augment: AugmentConfig | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        parts = []
        for start in range(0, len(images), _DECODED_AT_ONCE):
            few = torch.stack([plain(images.read(i)) for i in range(start, min(start + _DECODED_AT_ONCE, len(images)))])
            # The transform made these values of bytes, so the same bytes can be recovered.
            parts.append(((few * std + mean) * 255).round_().clamp_(0, 255).to(torch.uint8))
        self.pixels = torch.cat(parts).to(device)
        self.labels = torch.as_tensor(images.labels).to(device)
        self.scale, self.shift = (1 / (255 * std)).to(device), (-mean / std).to(device)
        self.augment, self.seed = (
            None if augment is None else augment.decided((self.pixels.shape[2], self.pixels.shape[3])),
            seed,
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: Key) -> tuple[Any, ...]:
        return tuple(part[0] for part in self.__getitems__([key])[:3])

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return a batch, on the device."""
        indices, views = send(torch.tensor(keys), self.pixels.device).unbind(1)
        pixels = self.pixels[indices]
        if self.augment is not None:
            pixels = _augmented(pixels, self.augment, self.seed, indices, views)
        images = torch.addcmul(self.shift, pixels.float(), self.scale)
        return Batch(images, self.labels[indices], indices)


def _augmented(pixels: Tensor, augment: AugmentConfig, seed: int, indices: Tensor, views: Tensor) -> Tensor:
    """Crop after padding with black, and flip; pixels (B, C, H, W) uint8."""
    height, width = pixels.shape[2:]
    above, beside = padding((height, width)) if augment.crop == "padded" else (0, 0)
    numbers = uniform(seed, indices, views, 3)
    top, left = (
        (numbers[:, axis] * (2 * around + 1)).long().clamp_(max=2 * around)
        for axis, around in ((0, above), (1, beside))
    )
    windows = F.pad(pixels, (beside, beside, above, above)).unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(len(pixels), device=pixels.device), :, top, left]
    if not augment.hflip:
        return cropped
    return torch.where(numbers[:, 2, None, None, None] < augment.hflip, cropped.flip(3), cropped)


def uniform(seed: int, indices: Tensor, views: Tensor, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) for each (seed, index, view): (B, count) float32, the same on every device."""
    slots = torch.arange(count, device=indices.device)
    state = _mixed(_mixed(_mixed(torch.full_like(indices, seed)) ^ indices) ^ views)
    return (_mixed(state[:, None] + slots) & 0xFFFFFF).float() / 2**24


def _mixed(state: Tensor) -> Tensor:
    # One step of SplitMix64; int64 arithmetic wraps around, and shifts are masked to be those of unsigned numbers.
    state = state + _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return state ^ ((state >> 31) & ((1 << 33) - 1))


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
