"""Batches of (images, labels, indices), the same whatever the worker count, device count or resume."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from crossdistill.data.datasets import Images


class Views(Dataset[tuple[Any, int, int]]):
    """Transformed pictures by (index, view).

    The randomness of a view comes from seed, image and view number alone, so the same view comes
    out whichever worker makes it, in whatever order.
    """

    def __init__(self, images: Images, transform: Callable[..., Any], seed: int | None = None) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, int, int]:
        index, view = key
        image = self.images.read(index)
        with nullcontext() if self.seed is None else _seeded(self.seed, index, view):
            return self.transform(image), int(self.images.labels[index]), index


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
    """Keys (index, view) of one process's share of an epoch; the view is the epoch.

    Shuffled by seed and epoch where `seed` is given; then only whole global batches are given, so
    that all processes take the same number of equal steps. Unshuffled, every image comes exactly
    once. `start_batch` skips the batches that an interrupted epoch has already seen.
    """

    def __init__(self, size: int, batch_size: int, seed: int | None = None, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch_size, self.seed, self.rank, self.world = size, batch_size, seed, rank, world
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def _count(self) -> int:
        if self.seed is None:
            return len(range(self.rank, self.size, self.world))
        whole = self.batch_size * self.world
        # A set smaller than one batch is one smaller batch.
        return self.size // whole * self.batch_size if self.size >= whole else self.size // self.world

    def __len__(self) -> int:
        return self._count()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.seed is None:
            yield from ((index, 0) for index in range(self.rank, self.size, self.world))
            return
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        mine = order[self.rank : self._count() * self.world : self.world]
        start, self.start_batch = self.start_batch, 0
        yield from ((int(index), self.epoch) for index in mine[start * self.batch_size :])


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
    return DataLoader(
        Views(images, transform, seed),
        batch_size=batch_size,
        sampler=ViewSampler(len(images), batch_size, seed, rank, world),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
