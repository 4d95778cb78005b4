"""What every source of images is: splits of images with labels, and the names of the classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image


class Images(Protocol):
    """Images of one split. `read` decodes one image; `labels` holds all class numbers, without decoding."""

    def __len__(self) -> int: ...
    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one image; its mode is L or RGB.

        With `at_least` a JPEG may be decoded at a half, a quarter or an eighth of its size while both sides have at
        least so many pixels, which takes a fraction of the time.
        """
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Class numbers of all images."""
        ...


@dataclass(frozen=True)
class Source:
    """A data set: its splits by role (train always, val and test where it has them), and the class names."""

    name: str
    splits: dict[str, Images]
    class_names: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """What was found and is not read, one phrase each."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """Files that cannot be images although they are named so, each with the reason."""


class Part:
    """Some images of a split, by index."""

    def __init__(self, images: Images, indices: Any) -> None:
        self.images = images
        self.indices = np.asarray(indices, dtype=np.int64)
        self.labels = np.asarray(images.labels)[self.indices].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one image."""
        return self.images.read(int(self.indices[index]), at_least)


def base_of(images: Images) -> tuple[Images, Any]:
    """Return the split that images are a part of, and their indices in it."""
    chosen: Any = np.arange(len(images))
    while isinstance(images, Part):
        chosen, images = images.indices[chosen], images.images
    return images, chosen


class Arrays:
    """Images in memory, (N, H, W) or (N, H, W, 3) uint8."""

    def __init__(self, pixels: Any, labels: Sequence[int]) -> None:
        self.pixels = pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Return one image."""
        return Image.fromarray(self.pixels[index])
