"""The teacher cache of a run: found or written before the first step."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from torch.utils.data import Dataset

from crossdistill.cache import CacheFormat, TeacherCache, Work, build_cache, fingerprint
from crossdistill.cache.build import check_fits
from crossdistill.cache.fingerprint import short_name
from crossdistill.cache.store import LOCKS, MANIFEST, missing_shards, read_manifest
from crossdistill.config import AugmentConfig, RunConfig
from crossdistill.data import ImageData, Images
from crossdistill.data.loaders import Key, ViewSampler, make_loader
from crossdistill.distiller import Distiller
from crossdistill.errors import UserError
from crossdistill.files import write_whole
from crossdistill.report.records import ScoredModel
from crossdistill.teacher import Teacher
from crossdistill.training.engine import local_rank
from crossdistill.training.inputs import own_size
from crossdistill.training.run_folder import check_writable
from crossdistill.types import BackboneOutput, Reads

_ROOT = Path("runs") / "cache"
SCORES = "teacher-scores.json"
_OURS = (LOCKS, ".gitignore")
"""What a cache that has no manifest yet may hold."""
_SHARD_BYTES = 256 * 2**20
_LEAST_IMAGES, _MOST_IMAGES = 64, 8192
"""Size of a shard, within these numbers of images. It is kept in memory until it is written."""


def stored_format(
    teacher: Teacher,
    classes: int,
    images: int,
    reads: Sequence[Reads],
    *,
    top_k: int | None,
    dtype: Literal["float16", "float32"],
) -> CacheFormat:
    """Decide what to store for methods that read this of the teacher.

    The embedding always; stage maps that are read; logits unless the teacher has other classes than the student's
    `classes`, which no method can read.
    """
    stages = sorted({stage for read in reads for stage in read.stages})
    shapes = tuple((stage, shape) for stage, shape in zip(stages, _stage_shapes(teacher, stages), strict=True))
    spec = teacher.spec
    stored = spec.num_classes if spec.num_classes == classes else 0
    fmt = CacheFormat(images, spec.embedding_dim, stored, top_k if stored else None, shapes, dtype)
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

    `views` is what the teacher sees; `reads` is what further methods read of it. Processes that call this at once
    (under torchrun) divide the work. Raises UserError for a folder that holds another cache, a cache that was changed,
    and a disk without room.
    """
    teacher, views_of_each = distiller.teacher, config.loader.views
    assert teacher is not None
    assert views_of_each is not None
    teacher.to(device)
    record = fingerprint(
        teacher,
        images,
        views,
        distiller.student.spec,
        augment=config.augment,
        view_seed=config.loader.view_seed,
        precision=config.engine.precision,
        drawn_size=None if own_size(config.augment, teacher) is None else distiller.student.img_size,
    )
    reads = [distiller.needs.teacher, *reads]
    classes = distiller.student.spec.num_classes
    fmt = stored_format(teacher, classes, len(images), reads, top_k=config.cache_top_k, dtype=config.cache_dtype)
    folder = _folder(config.cache, Path(config.data).name, teacher, fmt, record)
    # Read here already, so that a damaged file is refused before training.
    _read_scores(folder)
    work = Work(teacher, views, config.loader.batch_size, config.loader.workers, config.engine.precision)
    _complete(folder, fmt, record, views_of_each, work, console)
    return TeacherCache(folder, views_of_each, verify=local_rank() == 0)


def _complete(folder: Path, fmt: CacheFormat, record: dict[str, Any], views: int, work: Work, console: Console) -> None:
    """Announce a cache, and write the shards that it lacks. Raises UserError."""
    if (folder / MANIFEST).exists():
        check_fits(folder, fmt, record)
        fmt, _ = read_manifest(folder)
    todo = len(missing_shards(folder, fmt, views))
    rank_zero_only(console.print)(
        f"teacher cache {folder}: {views} views of {fmt.images} images, {fmt.bytes(views) / 2**20:.0f} MiB, "
        f"{todo} of {views * fmt.shards} shards to write",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if todo:
        check_writable(folder)
        build_cache(folder, fmt, record, views, work, console)


class HeldOutOutputs:
    """The teacher's outputs for held-out views, kept in memory."""

    def __init__(self, teacher: Teacher, views: Dataset[Any], batch_size: int, stages: bool) -> None:
        """Run the teacher on every view once."""
        device = teacher.scale.device
        size = len(views)  # type: ignore[arg-type]
        outputs = []
        with torch.inference_mode():
            for batch in make_loader(views, ViewSampler(size, batch_size)):
                outputs.append(teacher(batch.images.to(device), stages=stages).map(lambda values: values.cpu()))
        self._outputs = BackboneOutput(
            None if outputs[0].logits is None else torch.cat([one.require_logits() for one in outputs]),
            torch.cat([one.embedding for one in outputs]),
            tuple(torch.cat(maps) for maps in zip(*(one.require_stages() for one in outputs), strict=True))
            if stages
            else None,
        )

    def read(self, keys: list[Key]) -> BackboneOutput:
        """Return the outputs of a batch."""
        return self._outputs.map(lambda values: values[[index for index, _ in keys]])


def scored_once(
    cache: TeacherCache, data: ImageData, augment: AugmentConfig, score: Callable[[], ScoredModel]
) -> ScoredModel:
    """Return the teacher's scores on the test split: those of an earlier run on this cache, or new ones, stored now."""
    labels = hashlib.sha256(np.asarray(data.test.labels, dtype=np.int64).tobytes()).hexdigest()[:16]
    key = f"{data.name}, {len(data.test)} images, labels {labels}, {augment.crop_mode} {augment.crop_pct}"
    if data.files is not None:
        files = json.dumps(data.files.images["test"], sort_keys=True).encode()
        key += f", files {hashlib.sha256(files).hexdigest()[:16]}"
    stored = _read_scores(cache.folder)
    if key not in stored:
        stored[key] = score()
        write_whole(cache.folder / SCORES, json.dumps(stored, indent=1))
    return stored[key]


def _read_scores(folder: Path) -> dict[str, ScoredModel]:
    """Read the teacher's stored scores by test split. Raises UserError for a damaged file."""
    path = folder / SCORES
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, ScoredModel]).validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{str(path)!r} is damaged: delete it, and the teacher is scored again") from error


def _folder(cache: str, data: str, teacher: Teacher, fmt: CacheFormat, record: dict[str, object]) -> Path:
    if cache != "auto":
        folder = Path(cache)
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{str(folder)!r} is not a folder; give a folder as --cache")
        found = folder.iterdir() if folder.exists() else ()
        others = [path for path in found if path.name not in _OURS and path.suffix != ".partial"]
        if others and not (folder / MANIFEST).exists():
            raise UserError(f"{str(folder)!r} is not empty and not a teacher cache; give another folder as --cache")
        return folder
    # A cache with more stage maps can be used as well, so they are not part of the number.
    plain = asdict(replace(fmt, stages=(), shard_images=1))
    name = f"{data}-{teacher.spec.name}-{short_name({**record, 'format': plain})}"
    name = name.replace("/", "_").replace(":", "_").replace(" ", "")
    for manifest in sorted(_ROOT.glob(f"{name}*/{MANIFEST}")):
        if set(fmt.stages) <= set(read_manifest(manifest.parent)[0].stages):
            return manifest.parent
    return _ROOT / "-stage".join([name, *(str(number) for number, _ in fmt.stages)])
