"""The teacher cache of a run: found or made before the first step, and the teacher let go."""

import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from crossdistill.cache import CacheFormat, TeacherCache, build_cache, fingerprint
from crossdistill.cache.build import check_fits
from crossdistill.cache.fingerprint import short_name
from crossdistill.cache.store import MANIFEST, missing_shards
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.data.datasets import Part
from crossdistill.data.loaders import make_loader
from crossdistill.distiller import Distiller, create_distiller
from crossdistill.errors import UserError
from crossdistill.evaluation.teacher_check import check_teacher
from crossdistill.methods import find_method
from crossdistill.teacher import Teacher, TeacherGroup
from crossdistill.training.datamodule import DataModule
from crossdistill.training.setup import build_pair, check_names

_ROOT = Path("runs") / "cache"
_TEACHER_SAMPLE = 512
"""Held-out images the teacher is judged by before training, or five per class where that is more."""


def write_cache(config: RunConfig, console: Console) -> TeacherCache:
    """Write the teacher's outputs for runs to come; the method in the config says whether stage maps are needed.

    Raises UserError for bad input, as `fit` does.
    """
    config = config if config.cached else replace(config, cache="auto")
    check_names(config)
    if not find_method(config.method).uses_teacher:
        raise UserError(f"method {config.method!r} uses no teacher, so there is nothing to store")
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    data = load_data(config.data, config.loader)
    pair = build_pair(config, data)
    options = config.options.get(config.method, {})
    distiller = create_distiller(config.method, student=pair.student, teacher=pair.teachers, **options)
    datamodule = DataModule(data, config, pair.student.spec, pair.student.img_size)
    device = _device(config)
    assert distiller.teacher is not None
    for member in distiller.teacher.members:
        accuracy = look_at_teacher(config, member, data, datamodule, device)
        console.print(f"teacher {member.spec.name}: {100 * accuracy:.1f}% on held-out images", highlight=False)
    return prepare_cache(config, distiller, datamodule, device, console)


def _device(config: RunConfig) -> torch.device:
    """Choose this process's device: with torchrun, each its own."""
    if config.engine.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def look_at_teacher(
    config: RunConfig, teacher: Teacher, data: ImageData, datamodule: DataModule, device: torch.device
) -> float:
    """Give a teacher's accuracy on a sample of held-out images. Raises UserError, with the cause, near chance."""
    wanted = min(len(data.val), max(_TEACHER_SAMPLE, 5 * data.num_classes))
    chosen = torch.linspace(0, len(data.val) - 1, wanted).round().long().tolist()
    workers = config.loader.workers
    loader = make_loader(Part(data.val, chosen), datamodule.eval_transform, config.loader.batch_size, workers=workers)
    teacher.to(device)
    return check_teacher(teacher, loader, insist=config.trust_teacher)


def stored_format(config: RunConfig, distiller: Distiller, images: int) -> CacheFormat:
    """Say what has to be stored for a method: embedding and logits, and the stage maps that it reads."""
    teacher = distiller.teacher
    assert teacher is not None
    shapes: tuple[tuple[int, tuple[int, ...]], ...] = ()
    if distiller.method.teacher_stages:
        shapes = tuple((n, _stage_shape(teacher, n)) for n in sorted(distiller.method.teacher_stages))
    spec = teacher.spec
    return CacheFormat(images, spec.embedding_dim, spec.num_classes, config.cache_top_k, shapes, config.cache_dtype)


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

    Every process of a run may call this: they share the work. Raises UserError for a folder that holds
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
    say = rank_zero_only(console.print)
    todo = len(missing_shards(folder, fmt, config.views))
    say(
        f"teacher cache {folder}: {config.views} views of {fmt.images} images, "
        f"{fmt.bytes(config.views) / 2**20:.0f} MiB, {todo} of {config.views * fmt.shards} shards to write",
        highlight=False,
        soft_wrap=True,
    )
    if todo or not (folder / MANIFEST).exists():
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
    check_fits(folder, fmt, record)
    return TeacherCache(folder, config.views, verify=int(os.environ.get("LOCAL_RANK", "0")) == 0)


def _folder(config: RunConfig, teacher: Teacher | TeacherGroup, fmt: CacheFormat, record: dict[str, object]) -> Path:
    if config.cache != "auto":
        folder = Path(config.cache)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
            raise UserError(f"{str(folder)!r} is no teacher cache and not empty; give another folder as --cache")
        if folder.is_file():
            raise UserError(f"{str(folder)!r} is a file; give a folder as --cache")
        return folder
    name = f"{Path(config.data).name}-{teacher.spec.name}-{short_name({**record, 'format': asdict(fmt)})}"
    return _ROOT / name.replace("/", "_").replace(":", "_").replace(" ", "")
