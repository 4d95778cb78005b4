"""Images with labels and images without, in one run: each batch has a fixed part of both."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from crossdistill.data.datasets import Images, Part
from crossdistill.data.loaders import Key, ViewSampler
from crossdistill.data.look import copies
from crossdistill.errors import UserError
from crossdistill.types import NO_LABEL

if TYPE_CHECKING:
    from crossdistill.data.splits import ImageData


_MOST_BYTES = 2**30
"""Bytes of all files up to which copies of held-out images are looked for."""


class Joined:
    """Images of several sets, one after the other; those of the first have labels, the others `NO_LABEL`."""

    def __init__(self, *parts: Images) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.labels = [*parts[0].labels, *[NO_LABEL] * int(self.ends[-1] - self.ends[0])]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one image."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part].read(index - (int(self.ends[part - 1]) if part else 0), at_least)


def labelled_part(images: Images) -> Images:
    """Return the images that have labels."""
    return images.parts[0] if isinstance(images, Joined) else images


def with_unlabelled(data: "ImageData", others: "ImageData", name: str) -> "ImageData":
    """Return the data with all images of another set beside its training images, without their labels.

    Copies of held-out images are left out where the files can be compared. Raises UserError where nothing is left.
    """
    parts = {f"{number}": part for number, part in enumerate((others.train, others.val, others.test))}
    groups = copies({**parts, "val": data.val, "test": data.test}, _MOST_BYTES)
    held_out = {
        member for group in groups or [] if any(role in ("val", "test") for role, _ in group) for member in group
    }
    kept = [_without(part, {number for role, number in held_out if role == key}) for key, part in parts.items()]
    left_out = sum(len(part) for part in parts.values()) - sum(len(part) for part in kept)
    joined = Joined(data.train, *kept)
    count = len(joined) - len(data.train)
    if not count:
        raise UserError(f"loader.unlabelled {name!r} has no images beside those held out")
    line = f"{count:,} images without labels from {name!r}"
    if left_out:
        line += f"; {left_out:,} more are left out, since they are copies of held-out images"
    if groups is None:
        line += f"; copies of held-out images are not looked for, since they are more than {_MOST_BYTES / 2**30:g} GiB"
    return replace(data, train=joined, about=(*data.about, line))


def _without(part: Images, numbers: set[int]) -> Images:
    return Part(part, [number for number in range(len(part)) if number not in numbers])


class MixedSampler(ViewSampler):
    """Keys of batches of which a fixed part has labels.

    The first `labelled` images of the set have labels. An epoch has every image without a label once, except those
    left over after the last whole batch; labelled images are repeated in new orders to fill the batches, each time in a
    new view.
    """

    def __init__(self, labelled: int, part: float, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.labelled = labelled
        self.each = min(max(round(part * self.batch_size), 1), self.batch_size - 1)
        """Images with labels in a batch."""

    @property
    def batches(self) -> int:
        """Number of batches of a whole epoch."""
        others = (self.batch_size - self.each) * self.world
        return max(1, (self.size - self.labelled) // others)

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[Key]:
        start, self.start_batch = self.start_batch, 0
        others = self.batch_size - self.each
        passes = math.ceil(self.batches * self.each * self.world / self.labelled)
        free = self.labelled + self._mine(others, self._order(0, self.size - self.labelled))
        named = np.concatenate([self._order(number + 1, self.labelled) for number in range(passes)])
        known = self._mine(self.each, named)
        views = self._mine(self.each, np.repeat(self.epoch * passes + np.arange(passes), self.labelled))
        for batch in range(start, self.batches):
            for place in range(batch * self.each, (batch + 1) * self.each):
                yield int(known[place]), self._view(int(views[place]))
            for place in range(batch * others, (batch + 1) * others):
                yield int(free[place]), self._view(self.epoch)

    def _order(self, number: int, count: int) -> Any:
        return np.random.default_rng((self.seed or 0, self.epoch, number)).permutation(count)

    def _mine(self, each: int, values: Any) -> Any:
        """Return this process's share of an epoch: `each` values of a batch. A set that is too small is repeated."""
        return np.resize(values, self.batches * each * self.world)[self.rank :: self.world]

    def _view(self, number: int) -> int:
        return number if self.views is None else number % self.views
