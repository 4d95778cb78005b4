"""The teacher cache of a run: found or made before the first step, and the teacher let go."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from crossdistill.cache import CacheFormat, TeacherCache, build_cache, fingerprint
from crossdistill.cache.build import check_fits
from crossdistill.cache.fingerprint import short_name
from crossdistill.cache.store import LOCKS, MANIFEST, missing_shards, read_manifest
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.data.datasets import Part
from crossdistill.data.loaders import make_loader
from crossdistill.distiller import Distiller
from crossdistill.errors import UserError
from crossdistill.evaluation.teacher_check import check_teacher
from crossdistill.files import write_whole
from crossdistill.methods import find_method
from crossdistill.teacher import Teacher, TeacherGroup
from crossdistill.training.datamodule import DataModule
from crossdistill.training.setup import build_distiller, build_pair, check_names

_ROOT = Path("runs") / "cache"
SCORES = "teacher-scores.json"
_SHARD_BYTES = 256 * 2**20
_LEAST_IMAGES, _MOST_IMAGES = 64, 8192
"""A shard is written from memory and lost when its writer dies: so many bytes, within these numbers of images."""
_TEACHER_SAMPLE = 512
"""Held-out images the teacher is judged by before training, or five per class where that is more."""


def write_cache(config: RunConfig, console: Console) -> TeacherCache:
    """Write the teacher's outputs for runs to come; the method in the config says whether stage maps are needed.

    Raises UserError for bad input, as `fit` does.
    """
    config = config if config.cached else replace(config, cache="auto")
    check_names(config)
    if config.out is not None:
        raise UserError(f"a cache is no run: give its folder as --cache {config.out}, not as --out")
    if (config.engine.devices != 1 or config.engine.nodes != 1) and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"to write a cache with {config.engine.devices} devices, start the command under torchrun "
            "--nproc-per-node: each process takes the shards that nobody is writing"
        )
    if not find_method(config.method).uses_teacher:
        raise UserError(f"method {config.method!r} uses no teacher, so there is nothing to store")
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    data = load_data(config.data, config.loader)
    # As `fit` does: a teacher without weights of its own comes from the seed.
    torch.manual_seed(config.seed)
    pair = build_pair(config, data)
    distiller = build_distiller(config, pair)
    datamodule = DataModule(data, config, pair.student.spec, pair.student.img_size)
    device = _device(config)
    look_at_teachers(config, distiller, data, datamodule, device, console)
    return prepare_cache(config, distiller, datamodule, device, console)


def stages_to_store(config: RunConfig) -> int:
    """Count the teacher's stage maps that a run would have stored."""
    pair = build_pair(config, load_data(config.data, config.loader))
    return len(build_distiller(config, pair).method.teacher_stages)


def _device(config: RunConfig) -> torch.device:
    """Choose this process's device: with torchrun, each its own."""
    if config.engine.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", _local_rank())
    return torch.device("cpu")


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def look_at_teachers(
    config: RunConfig,
    distiller: Distiller,
    data: ImageData,
    datamodule: DataModule,
    device: torch.device,
    console: Console,
) -> None:
    """Say how accurate the teachers are on some held-out images. Raises UserError, with the cause, near chance."""
    wanted = min(len(data.val), max(_TEACHER_SAMPLE, 5 * data.num_classes))
    chosen = torch.linspace(0, len(data.val) - 1, wanted).round().long().tolist()
    workers = config.loader.workers
    loader = make_loader(Part(data.val, chosen), datamodule.eval_transform, config.loader.batch_size, workers=workers)
    for member in () if distiller.teacher is None else distiller.teacher.members:
        accuracy = check_teacher(member.to(device), loader, insist=config.trust_teacher)
        console.print(f"teacher {member.spec.name}: {100 * accuracy:.1f}% on held-out images", highlight=False)


def stored_format(config: RunConfig, distiller: Distiller, images: int) -> CacheFormat:
    """Say what has to be stored for a method: embedding and logits, and the stage maps that it reads."""
    teacher = distiller.teacher
    assert teacher is not None
    shapes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    if distiller.method.teacher_stages:
        shapes = tuple((n, _stage_shape(teacher, n)) for n in sorted(distiller.method.teacher_stages))
    spec = teacher.spec
    fmt = CacheFormat(images, spec.embedding_dim, spec.num_classes, config.cache_top_k, shapes, config.cache_dtype)
    fitting = min(_MOST_IMAGES, max(_LEAST_IMAGES, _SHARD_BYTES // fmt.row.itemsize))
    return replace(fmt, shard_images=fitting)


@torch.no_grad()
def _stage_shape(teacher: Teacher | TeacherGroup, stage: int) -> tuple[int, ...]:
    backbone = teacher.members[0].backbone
    like = next(backbone.parameters())
    size = backbone.img_size
    stages = backbone(like.new_zeros(1, backbone.spec.in_chans, size, size), stages=True).stages
    assert stages is not None
    return tuple(stages[stage - 1].shape[1:])


def prepare_cache(
    config: RunConfig, distiller: Distiller, datamodule: DataModule, device: torch.device, console: Console
) -> TeacherCache:
    """Find the cache that fits the run, write what is missing of it, and open it.

    Processes that call this at once (under torchrun) share the work. Raises UserError for a folder that holds
    another cache, one that was changed, and a disk without room.
    """
    teacher = distiller.teacher
    assert teacher is not None
    assert config.views is not None
    teacher.to(device)
    views = datamodule.train_views(device)
    record = fingerprint(config, teacher, datamodule.data.train, views, datamodule.student)
    fmt = stored_format(config, distiller, len(datamodule.data.train))
    folder = _folder(config, teacher, fmt, record)
    if (folder / MANIFEST).exists():
        check_fits(folder, fmt, record)
        fmt, _ = read_manifest(folder)
    say = rank_zero_only(console.print)
    todo = len(missing_shards(folder, fmt, config.views))
    say(
        f"teacher cache {folder}: {config.views} views of {fmt.images} images, "
        f"{fmt.bytes(config.views) / 2**20:.0f} MiB, {todo} of {config.views * fmt.shards} shards to write",
        highlight=False,
        soft_wrap=True,
    )
    if todo:
        start = time.perf_counter()
        build_cache(
            folder,
            fmt,
            record,
            config.views,
            teacher,
            views,
            batch_size=config.loader.batch_size,
            workers=config.loader.workers,
            precision=config.engine.precision,
            console=console,
        )
        say(f"teacher cache written in {time.perf_counter() - start:.1f} s", highlight=False)
    return TeacherCache(folder, config.views, verify=_local_rank() == 0)


def judged_once(
    cache: TeacherCache, config: RunConfig, data: ImageData, judge: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Give the teacher's scores on the test split: those of an earlier run on this cache, or new ones, now kept."""
    path = cache.folder / SCORES
    labels = hashlib.sha256(np.asarray(data.test.labels, dtype=np.int64).tobytes()).hexdigest()[:16]
    key = f"{data.name}, {len(data.test)} images, labels {labels}, crop_pct {config.augment.crop_pct}"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if key not in known:
        known[key] = judge()
        write_whole(path, json.dumps(known, indent=1))
    scores: dict[str, Any] = known[key]
    return scores


def _folder(config: RunConfig, teacher: Teacher | TeacherGroup, fmt: CacheFormat, record: dict[str, object]) -> Path:
    if config.cache is not None and config.cache != "auto":
        folder = Path(config.cache)
        others = [path for path in folder.iterdir() if path.name != LOCKS] if folder.is_dir() else []
        if others and not (folder / MANIFEST).exists():
            raise UserError(f"{str(folder)!r} is no teacher cache and not empty; give another folder as --cache")
        if folder.is_file():
            raise UserError(f"{str(folder)!r} is a file; give a folder as --cache")
        return folder
    # A cache with more stage maps serves as well as one without them, so they do not count in the number.
    plain = asdict(replace(fmt, stages=(), shard_images=1))
    name = f"{Path(config.data).name}-{teacher.spec.name}-{short_name({**record, 'format': plain})}"
    name = name.replace("/", "_").replace(":", "_").replace(" ", "")
    for manifest in sorted(_ROOT.glob(f"{name}*/{MANIFEST}")):
        if set(fmt.stages) <= set(read_manifest(manifest.parent)[0].stages):
            return manifest.parent
    return _ROOT / "-stage".join([name, *(str(number) for number, _ in fmt.stages)])
