"""Batches of (images, labels, indices), the same whatever the worker count, device count or resume.

Where the teacher's outputs are stored, a fourth entry holds those of the batch.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from crossdistill.data.datasets import Images


class Stored(Protocol):
    """Outputs of a teacher by (index, view)."""

    def read(self, keys: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Give the stored tensors of a batch, by name."""
        ...


class Views(Dataset[Any]):
    """Transformed pictures by (index, view), for each (image, label, index); a list of keys gives a batch.

    The randomness of a view comes from seed, image and view number alone, so the same view comes
    out whichever worker makes it, in whatever order.
    """

    def __init__(
        self, images: Images, transform: Callable[..., Any], seed: int | None = None, stored: Stored | None = None
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.stored = stored

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int, int]:
        index, view = key
        image = self.images.read(index)
        with nullcontext() if self.seed is None else _seeded(self.seed, index, view):
            return self.transform(image), int(self.images.labels[index]), index

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Any, ...]:
        """Give a batch: images, labels, indices, and stored outputs."""
        batch = tuple(default_collate([self[key] for key in keys]))
        return batch if self.stored is None else (*batch, self.stored.read(keys))


def mix_seed(*numbers: int) -> int:
    """Mix whole numbers into one 32-bit seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    # Workers have nothing else to draw; the main process gets its generators back as they were.
    keep = get_worker_info() is None
    if keep:
        before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed = mix_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if keep:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.default_generator.set_state(before[2])


class ViewSampler(Sampler[tuple[int, int]]):
    """Keys (index, view) of one process's share of an epoch.

    The view is the epoch; with `views`, so many views take turns. Shuffled by seed and epoch where
    `seed` is given; then only whole global batches are given, so that all processes take the same
    number of equal steps. Unshuffled, every image comes once, in order; where the processes do not
    divide them evenly, the first images come again at the end of the last ones, so that all take
    as many steps, and `own` says how many of a process's keys count. `start_batch` skips the batches that an
    interrupted epoch has already seen.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
        views: int | None = None,
    ) -> None:
        self.views = views
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.epoch = 0
        self.start_batch = 0

    @property
    def own(self) -> int:
        """Count this process's keys of an unshuffled epoch that are no repetition."""
        return len(range(self.rank, self.size, self.world))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def _count(self) -> int:
        if self.seed is None:
            return -(-self.size // self.world)
        whole = self.batch_size * self.world
        # A set smaller than one batch is one smaller batch.
        return self.size // whole * self.batch_size if self.size >= whole else self.size // self.world

    def __len__(self) -> int:
        return self._count()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.seed is None:
            yield from ((place % self.size, 0) for place in range(self.rank, self._count() * self.world, self.world))
            return
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        mine = order[self.rank : self._count() * self.world : self.world]
        start, self.start_batch = self.start_batch, 0
        view = self.epoch if self.views is None else self.epoch % self.views
        yield from ((int(index), view) for index in mine[start * self.batch_size :])


def make_loader(
    images: Images,
    transform: Callable[..., Any],
    batch_size: int,
    *,
    seed: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Any]:
    """Make a loader: shuffled, seeded views where `seed` is given, else every image once in order."""
    return load_views(
        Views(images, transform, seed), ViewSampler(len(images), batch_size, seed, rank, world), workers=workers
    )


def load_views(views: Dataset[Any], sampler: "ViewSampler", *, workers: int = 0) -> DataLoader[Any]:
    """Make a loader of a dataset that gives whole batches for lists of keys."""
    return DataLoader(
        views,
        batch_size=sampler.batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and isinstance(views, Views),
        collate_fn=as_it_is,
    )


def as_it_is(batch: Any) -> Any:
    """Leave a batch as the dataset made it."""
    return batch
