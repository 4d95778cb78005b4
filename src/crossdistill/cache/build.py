"""Write the teacher's outputs: any number of processes, stopped and started at will."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from crossdistill.cache.fingerprint import difference
from crossdistill.cache.store import (
    LOCKS,
    MANIFEST,
    CacheFormat,
    missing_shards,
    read_manifest,
    shard_name,
    write_manifest,
)
from crossdistill.data.loaders import Views, as_it_is
from crossdistill.errors import UserError
from crossdistill.files import write_whole
from crossdistill.teacher import Teacher, TeacherGroup

_SPARE = 64 * 2**20
"""Bytes left free on the disk."""
_WAIT_S = 0.5
_AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


def build_cache(
    folder: Path,
    fmt: CacheFormat,
    record: dict[str, Any],
    views: int,
    teacher: Teacher | TeacherGroup,
    dataset: Dataset[Any],
    *,
    batch_size: int,
    workers: int = 0,
    precision: str = "32",
    console: Console | None = None,
) -> None:
    """Write the shards that are missing of `views` views; returns when all are there, whoever wrote them.

    Several processes may call this for one folder at once, on one machine or on a shared disk: each
    takes the shards that nobody is writing. A process that dies leaves whole shards and a lock that dies
    with it. Raises UserError for a folder that holds another cache (with the difference), and for a disk
    that is or gets full (nothing written is lost).
    """
    console = console or Console(stderr=True)
    # Locks stay when the work is done: another process may just be taking one.
    locks = folder / LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with _locked(locks / "manifest", wait=True):
        if (folder / MANIFEST).exists():
            check_fits(folder, fmt, record)
            fmt, _ = read_manifest(folder)
        else:
            write_manifest(folder, fmt, record)
    _check_space(folder, fmt, views)
    device = teacher.members[0].scale.device
    work = missing_shards(folder, fmt, views)
    with _progress(console, fmt, len(work)) as advance:
        while work:
            done = 0
            for view, shard in work:
                with _locked(locks / shard_name(view, shard)) as mine:
                    if mine and (view, shard) in missing_shards(folder, fmt, views):
                        _write_shard(folder, fmt, view, shard, teacher, dataset, device, batch_size, workers, precision)
                        done += 1
                        advance()
            work = missing_shards(folder, fmt, views)
            if work and not done:
                time.sleep(_WAIT_S)


def check_fits(folder: Path, fmt: CacheFormat, record: dict[str, Any]) -> None:
    """Refuse a cache that was made with something else, or lacks something; more stage maps do no harm.

    Raises UserError.
    """
    stored, before = read_manifest(folder)
    reason = difference(before, record)
    wanted = replace(fmt, shard_images=stored.shard_images)
    if set(fmt.stages) <= set(stored.stages):
        wanted = replace(wanted, stages=stored.stages)
    if reason is None and stored != wanted:
        name = next(n for n in CacheFormat.__dataclass_fields__ if getattr(stored, n) != getattr(wanted, n))
        reason = f"other contents: {name} was {getattr(stored, name)!r}, is now {getattr(fmt, name)!r}"
    if reason is not None:
        raise UserError(
            f"the teacher cache {str(folder)!r} was made with {reason}; give another folder, or --cache auto, "
            "which finds or makes the one that fits"
        )


def _check_space(folder: Path, fmt: CacheFormat, views: int) -> None:
    todo = sum(end - first for first, end in (fmt.bounds(s) for _, s in missing_shards(folder, fmt, views)))
    needed, free = todo * fmt.row.itemsize + _SPARE, shutil.disk_usage(folder).free
    if todo and needed > free:
        raise UserError(
            f"{str(folder)!r} has {free / 2**20:.0f} MiB free, the rest of the teacher cache needs "
            f"{needed / 2**20:.0f} MiB: fewer --loader.views, or --cache-top-k, make it smaller"
        )


@torch.no_grad()
def _write_shard(
    folder: Path,
    fmt: CacheFormat,
    view: int,
    shard: int,
    teacher: Teacher | TeacherGroup,
    dataset: Dataset[Any],
    device: torch.device,
    batch_size: int,
    workers: int,
    precision: str,
) -> None:
    first, end = fmt.bounds(shard)
    rows = np.empty(end - first, dtype=fmt.row)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=[(index, view) for index in range(first, end)],
        num_workers=workers if isinstance(dataset, Views) else 0,
        collate_fn=as_it_is,
    )
    place = 0
    for images, *_ in loader:
        with torch.autocast(device.type, _AUTOCAST.get(precision), enabled=precision in _AUTOCAST):
            output = teacher(images.to(device, non_blocking=True), stages=bool(fmt.stages))
        fmt.pack(output, rows[place : place + len(images)])
        place += len(images)
    content = rows.view(np.uint8).data
    path = folder / f"{shard_name(view, shard)}.bin"
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        write_whole(path.with_suffix(".json"), json.dumps({"sha256": hashlib.sha256(content).hexdigest()}))
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {str(folder)!r} is full; the shards written so far are whole, and the same command goes on "
            "with them when there is room"
        ) from error


@contextmanager
def _locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that dies with the process; gives False where another one holds it."""
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


@contextmanager
def _progress(console: Console, fmt: CacheFormat, shards: int) -> Iterator[Any]:
    """Show a bar on a terminal, else a line now and then."""
    start, done = time.perf_counter(), 0
    bar = Progress(
        TextColumn("teacher cache"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=shards)

    def advance() -> None:
        nonlocal done
        done += 1
        bar.advance(task)
        spent = time.perf_counter() - start
        if not console.is_terminal and (done % max(1, shards // 5) == 0 or done == shards):
            left = spent / done * (shards - done)
            console.print(f"teacher cache: {done}/{shards} shards  {spent:.0f} s, {left:.0f} s left", highlight=False)

    with bar:
        yield advance
