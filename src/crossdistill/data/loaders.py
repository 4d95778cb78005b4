"""Seeded views of images in batches: the same whatever the worker count, the device count or a resume."""

import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from crossdistill.data.datasets import Images
from crossdistill.types import BackboneOutput, Batch

Key = tuple[int, int]
"""Number of an image and number of its view."""


class Views(Dataset[Any]):
    """Transformed images by (index, view): one gives (image, label, index), a list of keys gives a `Batch`.

    The randomness of a view comes from seed, image and view number alone, so that the same view is made by any worker,
    in any order. Without `seed` the transform has no randomness. `at_least` is that of `Images.read`. With `teacher`, a
    transform that draws the same numbers, each view is also rendered for the teacher, at its own size.
    """

    def __init__(
        self,
        images: Images,
        transform: Callable[..., Any],
        seed: int | None = None,
        at_least: int | None = None,
        teacher: Callable[..., Any] | None = None,
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.at_least = at_least
        self.teacher = teacher

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> tuple[Any, int, int]:
        image = self.images.read(key[0], self.at_least)
        return self._made(self.transform, image, key), int(self.images.labels[key[0]]), key[0]

    def _made(self, transform: Callable[..., Any], image: Any, key: Key) -> Any:
        with nullcontext() if self.seed is None else _seeded(self.seed, *key):
            return transform(image)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return a batch."""
        if self.teacher is None:
            return Batch(*default_collate([self[key] for key in keys]))
        made = []
        for key in keys:
            image, label = self.images.read(key[0], self.at_least), int(self.images.labels[key[0]])
            both = (self._made(transform, image, key) for transform in (self.transform, self.teacher))
            made.append((*both, label, key[0]))
        images, teacher_images, labels, indices = default_collate(made)
        return Batch(images, labels, indices, teacher_images=teacher_images)


class Stored(Protocol):
    """Outputs of a teacher by (index, view)."""

    def read(self, keys: list[Key]) -> BackboneOutput:
        """Return the stored output of a batch."""
        ...


class WithTeacher(Dataset[Any]):
    """Views whose batches bring the teacher's stored output for exactly these views."""

    def __init__(self, views: Dataset[Any], stored: Stored) -> None:
        self.views = views
        self.stored = stored

    def __len__(self) -> int:
        return len(self.views)  # type: ignore[arg-type]

    def __getitems__(self, keys: list[Key]) -> Batch:
        """Return a batch, on the device of its images."""
        batch: Batch = self.views.__getitems__(keys)  # type: ignore[attr-defined]
        device = batch.images.device
        return batch._replace(teacher=self.stored.read(keys).map(lambda values: send(values, device)))


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to a device without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def mix_seed(*numbers: int) -> int:
    """Mix whole numbers into one 32-bit seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    # A worker draws nothing else; in the main process the generators are restored afterwards. (Lightning's isolate_rng
    # does the same, but reading data must not depend on Lightning.)
    restore = get_worker_info() is None
    if restore:
        before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed = mix_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if restore:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.default_generator.set_state(before[2])


class ViewSampler(Sampler[Key]):
    """Keys (index, view) of one process's share of an epoch.

    The view is the epoch; with `views`, that many views are used in turn. With `seed` the keys are shuffled by seed and
    epoch, and only whole global batches are returned, so that all processes take the same number of equal steps.
    Without, every image is returned once, in order: image i belongs to process i modulo `world`. Where the processes do
    not divide the images evenly, the last ones get the first images again, so that all take as many steps; these
    belong to another process. `start_batch` skips the batches that an interrupted epoch has already used.
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

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.seed is None:
            return -(-self.size // self.world)
        whole = self.batch_size * self.world
        # A set smaller than one batch is one smaller batch.
        return self.size // whole * self.batch_size if self.size >= whole else self.size // self.world

    @property
    def batches(self) -> int:
        """Number of batches of a whole epoch."""
        return math.ceil(len(self) / self.batch_size)

    def __iter__(self) -> Iterator[Key]:
        if self.seed is None:
            yield from ((place % self.size, 0) for place in range(self.rank, len(self) * self.world, self.world))
            return
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        mine = order[self.rank : len(self) * self.world : self.world]
        start, self.start_batch = self.start_batch, 0
        view = self.epoch if self.views is None else self.epoch % self.views
        yield from ((int(index), view) for index in mine[start * self.batch_size :])


def make_loader(views: Dataset[Any], sampler: ViewSampler, *, workers: int = 0) -> DataLoader[Any]:
    """Make a loader of a data set that returns whole batches for lists of keys."""
    return DataLoader(
        views,
        batch_size=sampler.batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and workers > 0,
        collate_fn=unchanged,
        worker_init_fn=end_with_parent if workers else None,
    )


def end_with_parent(worker: int) -> None:
    """Let a worker process ignore SIGTERM, unless its parent has sent it.

    A scheduler or a container sends it to all processes of a job at once. The run then finishes its step and saves a
    checkpoint, for which it needs its workers.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, args=(os.getppid(),), daemon=True).start()


def _wait_for_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def evaluation_loader(
    images: Images, transform: Callable[..., Any], batch_size: int, *, workers: int = 0
) -> DataLoader[Any]:
    """Make a loader of every image once, in order, in this process alone."""
    return make_loader(Views(images, transform), ViewSampler(len(images), batch_size), workers=workers)


def unchanged(batch: Any) -> Any:
    """Return a batch as the data set made it."""
    return batch
