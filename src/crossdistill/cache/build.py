"""Write the teacher's outputs: by any number of processes, which may be stopped and started again."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from crossdistill.cache.fingerprint import difference
from crossdistill.cache.format import CacheFormat
from crossdistill.cache.store import (
    LOCKS,
    MANIFEST,
    missing_shards,
    read_manifest,
    shard_name,
    write_manifest,
)
from crossdistill.data.loaders import Views, unchanged
from crossdistill.errors import UserError
from crossdistill.files import make_folder, write_whole
from crossdistill.progress import ProgressReport
from crossdistill.teacher import Teacher

_SPARE = 64 * 2**20
"""Bytes left free on the disk."""
_WAIT_S = 0.5
_AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Work:
    """How the teacher is run: on `dataset`, which yields its images by (index, view)."""

    teacher: Teacher
    dataset: Dataset[Any]
    batch_size: int
    workers: int = 0
    precision: str = "32"


def build_cache(
    folder: Path, fmt: CacheFormat, record: dict[str, Any], views: int, work: Work, console: Console | None = None
) -> None:
    """Write the missing shards of `views` views; returns when all exist, whichever process wrote them.

    Several processes may call this for one folder at once, on one machine or on a shared disk: each takes the shards
    that no other is writing. A process that dies leaves complete shards and a lock that is released with it. Raises
    UserError for a folder that holds another cache (with the difference), and for a disk that is or becomes full
    (nothing written is lost).
    """
    console = console or Console(stderr=True, emoji=False)
    # Locks stay when the work is done: another process may be about to take one.
    locks = folder / LOCKS
    make_folder(folder)
    locks.mkdir(exist_ok=True)
    with _locked(locks / "manifest", wait=True):
        if (folder / MANIFEST).exists():
            check_fits(folder, fmt, record)
            fmt, _ = read_manifest(folder)
        else:
            write_manifest(folder, fmt, record)
    _check_space(folder, fmt, views)
    images = views * fmt.images
    done = images - fmt.images_in(missing_shards(folder, fmt, views))
    with ProgressReport(console, "teacher cache", images, done) as report:
        progress = _Progress(report, folder, fmt, views)
        while todo := progress.todo:
            written = 0
            for view, shard in todo:
                with _locked(locks / shard_name(view, shard)) as mine:
                    if mine and (view, shard) in missing_shards(folder, fmt, views):
                        _write_shard(folder, fmt, view, shard, work, progress.show)
                        written += 1
                        progress.refresh()
            if not written:
                time.sleep(_WAIT_S)
                progress.refresh()


class _Progress:
    """Progress of all processes that write one cache, in images."""

    def __init__(self, report: ProgressReport, folder: Path, fmt: CacheFormat, views: int) -> None:
        self.report, self.folder, self.format, self.views = report, folder, fmt, views
        self.todo = missing_shards(folder, fmt, views)

    def refresh(self) -> None:
        """Find out which shards are still missing; any process may have written the others."""
        self.todo = missing_shards(self.folder, self.format, self.views)
        self.show(0)

    def show(self, rows: int) -> None:
        """Show that `rows` images of the current shard are done, besides the finished shards."""
        self.report.reach(self.report.total - self.format.images_in(self.todo) + rows)
        if self.report.due or not self.todo:
            shards = self.views * self.format.shards
            self.report.print_state(f"{shards - len(self.todo)}/{shards} shards")


def check_fits(folder: Path, fmt: CacheFormat, record: dict[str, Any]) -> None:
    """Raise UserError for a cache made with something else, or without what is needed; more stage maps are allowed."""
    stored, before = read_manifest(folder)
    reason = difference(before, record)
    expected = replace(fmt, shard_images=stored.shard_images)
    if set(fmt.stages) <= set(stored.stages):
        expected = replace(expected, stages=stored.stages)
    if reason is None and stored != expected:
        name = next(n for n in CacheFormat.__dataclass_fields__ if getattr(stored, n) != getattr(expected, n))
        reason = f"other contents: {name} was {getattr(stored, name)!r}, is now {getattr(fmt, name)!r}"
    if reason is not None:
        raise UserError(
            f"the teacher cache {str(folder)!r} was made with {reason}; give another folder, or --cache auto, "
            "which finds or makes the matching one"
        )


def _check_space(folder: Path, fmt: CacheFormat, views: int) -> None:
    todo = fmt.images_in(missing_shards(folder, fmt, views))
    needed, free = todo * fmt.row.itemsize + _SPARE, shutil.disk_usage(folder).free
    if todo and needed > free:
        raise UserError(
            f"{str(folder)!r} has {free / 2**20:.0f} MiB free, the rest of the teacher cache needs "
            f"{needed / 2**20:.0f} MiB: fewer --loader.views, or --cache-top-k, make it smaller"
        )


def _write_shard(
    folder: Path, fmt: CacheFormat, view: int, shard: int, work: Work, show: Callable[[int], None]
) -> None:
    content = _run_teacher(fmt, view, shard, work, show).view(np.uint8).data
    path = folder / f"{shard_name(view, shard)}.bin"
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        # This syncs the folder as well.
        write_whole(path.with_suffix(".json"), json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {str(folder)!r} is full; the shards written so far are complete, and the same command "
            "continues with them when there is room"
        ) from error


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which a teacher runs at the precision of a run, as Lightning does."""
    return torch.autocast(device.type, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST)


@torch.no_grad()
def _run_teacher(fmt: CacheFormat, view: int, shard: int, work: Work, show: Callable[[int], None]) -> Any:
    """Compute the rows of one shard, and call `show` with the number of those that are done."""
    first, end = fmt.bounds(shard)
    rows = np.empty(end - first, dtype=fmt.row)
    device = work.teacher.scale.device
    loader: DataLoader[Any] = DataLoader(
        work.dataset,
        batch_size=work.batch_size,
        sampler=[(index, view) for index in range(first, end)],
        num_workers=work.workers if isinstance(work.dataset, Views) else 0,
        collate_fn=unchanged,
    )
    place = 0
    for images, *_ in loader:
        with autocast(device, work.precision):
            output = work.teacher(images.to(device, non_blocking=True), stages=bool(fmt.stages))
        fmt.pack(output, rows[place : place + len(images)])
        place += len(images)
        show(place)
    return rows


@contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that is released when the process dies; yields False where another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
