"""The teacher cache of a run: found or written before the first step."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from torch.utils.data import Dataset

from crossdistill.cache import CacheFormat, TeacherCache, Work, build_cache, fingerprint
from crossdistill.cache.build import check_fits
from crossdistill.cache.fingerprint import short_name
from crossdistill.cache.store import LOCKS, MANIFEST, missing_shards, read_manifest
from crossdistill.config import AugmentConfig, RunConfig
from crossdistill.data import ImageData, Images
from crossdistill.distiller import Distiller
from crossdistill.errors import UserError
from crossdistill.files import write_whole
from crossdistill.teacher import Teacher
from crossdistill.training.engine import local_rank
from crossdistill.types import Reads

_ROOT = Path("runs") / "cache"
SCORES = "teacher-scores.json"
_OURS = (LOCKS, ".gitignore")
"""What a cache that has no manifest yet may hold."""
_SHARD_BYTES = 256 * 2**20
_LEAST_IMAGES, _MOST_IMAGES = 64, 8192
"""A shard is written from memory and lost when its writer dies: so many bytes, within these numbers of images."""


def stored_format(
    teacher: Teacher, images: int, reads: Sequence[Reads], *, top_k: int | None, dtype: str
) -> CacheFormat:
    """Decide what to store for methods that read this of the teacher: always embedding and logits, and stage maps."""
    stages = sorted({stage for read in reads for stage in read.stages})
    shapes = tuple((stage, shape) for stage, shape in zip(stages, _stage_shapes(teacher, stages), strict=True))
    spec = teacher.spec
    fmt = CacheFormat(images, spec.embedding_dim, spec.num_classes, top_k, shapes, dtype)
    return replace(fmt, shard_images=min(_MOST_IMAGES, max(_LEAST_IMAGES, _SHARD_BYTES // fmt.row.itemsize)))


@torch.no_grad()
def _stage_shapes(teacher: Teacher, stages: Sequence[int]) -> list[tuple[int, ...]]:
    if not stages:
        return []
    backbone = teacher.backbone
    like = next(backbone.parameters())
    images = like.new_zeros(1, backbone.spec.in_chans, backbone.img_size, backbone.img_size)
    maps = backbone(images, stages=True).require_stages()
    return [tuple(maps[stage - 1].shape[1:]) for stage in stages]


def prepare_cache(
    config: RunConfig,
    images: Images,
    views: Dataset[Any],
    distiller: Distiller,
    device: torch.device,
    console: Console,
    reads: Sequence[Reads] = (),
) -> TeacherCache:
    """Find the cache of a run whose settings are decided, write what it lacks, and open it.

    `reads` is what further methods read of the teacher. Processes that call this at once (under torchrun) share the
    work. Raises UserError for a folder that holds another cache, a cache that was changed, and a disk without room.
    """
    count, teacher = config.loader.views, distiller.teacher
    assert count is not None
    assert teacher is not None
    teacher.to(device)
    record = fingerprint(
        teacher,
        images,
        views,
        distiller.student.spec,
        augment=config.augment,
        view_seed=config.loader.view_seed,
        precision=config.engine.precision,
    )
    reads = [distiller.needs.teacher, *reads]
    fmt = stored_format(teacher, len(images), reads, top_k=config.cache_top_k, dtype=config.cache_dtype)
    folder = _folder(config.cache, Path(config.data).name, teacher, fmt, record)
    if (folder / MANIFEST).exists():
        check_fits(folder, fmt, record)
        fmt, _ = read_manifest(folder)
    todo = len(missing_shards(folder, fmt, count))
    rank_zero_only(console.print)(
        f"teacher cache {folder}: {count} views of {fmt.images} images, "
        f"{fmt.bytes(count) / 2**20:.0f} MiB, {todo} of {count * fmt.shards} shards to write",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if todo:
        work = Work(teacher, views, config.loader.batch_size, config.loader.workers, config.engine.precision)
        build_cache(folder, fmt, record, count, work, console)
    return TeacherCache(folder, count, verify=local_rank() == 0)


def judged_once(
    cache: TeacherCache, data: ImageData, augment: AugmentConfig, judge: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Return the teacher's scores on the test split: those of an earlier run on this cache, or new ones, stored now."""
    path = cache.folder / SCORES
    labels = hashlib.sha256(np.asarray(data.test.labels, dtype=np.int64).tobytes()).hexdigest()[:16]
    key = f"{data.name}, {len(data.test)} images, labels {labels}, {augment.crop_mode} {augment.crop_pct}"
    if data.files is not None:
        files = json.dumps(data.files.images["test"], sort_keys=True).encode()
        key += f", files {hashlib.sha256(files).hexdigest()[:16]}"
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if key not in known:
        known[key] = judge()
        write_whole(path, json.dumps(known, indent=1))
    scores: dict[str, Any] = known[key]
    return scores


def _folder(cache: str, data: str, teacher: Teacher, fmt: CacheFormat, record: dict[str, object]) -> Path:
    if cache != "auto":
        folder = Path(cache)
        others = [path for path in folder.iterdir() if path.name not in _OURS] if folder.is_dir() else []
        if others and not (folder / MANIFEST).exists():
            raise UserError(f"{str(folder)!r} is not empty and not a teacher cache; give another folder as --cache")
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{str(folder)!r} is not a folder; give a folder as --cache")
        return folder
    # A cache with more stage maps serves as well as one without them, so they are not part of the number.
    plain = asdict(replace(fmt, stages=(), shard_images=1))
    name = f"{data}-{teacher.spec.name}-{short_name({**record, 'format': plain})}"
    name = name.replace("/", "_").replace(":", "_").replace(" ", "")
    for manifest in sorted(_ROOT.glob(f"{name}*/{MANIFEST}")):
        if set(fmt.stages) <= set(read_manifest(manifest.parent)[0].stages):
            return manifest.parent
    return _ROOT / "-stage".join([name, *(str(number) for number, _ in fmt.stages)])
