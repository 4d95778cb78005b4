"""The teacher cache of a run: found or written before the first step."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from torch.utils.data import Dataset

from crossdistill.backbones.pooling import pooled
from crossdistill.cache import CacheFormat, TeacherCache, Work, build_cache, fingerprint
from crossdistill.cache.build import autocast, check_fits
from crossdistill.cache.store import MANIFEST, missing_shards, read_manifest
from crossdistill.config import AugmentConfig, RunConfig
from crossdistill.data import ImageData, Images
from crossdistill.data.loaders import Key, ViewSampler, make_loader
from crossdistill.data.look import sampled_contents
from crossdistill.distiller import Distiller
from crossdistill.errors import UserError
from crossdistill.files import read_plain, write_whole
from crossdistill.report.records import ScoredModel
from crossdistill.teacher import Teacher
from crossdistill.training.cache_format import cache_folder, holds, stored_format
from crossdistill.training.engine import local_rank
from crossdistill.training.inputs import own_size
from crossdistill.training.run_folder import check_writable
from crossdistill.types import BackboneOutput, Reads

SCORES = "teacher-scores.json"


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
    formats = _formats(config, distiller, teacher, len(images), reads)
    folder = cache_folder(config.cache, Path(config.data).name, teacher, formats, record)
    fmt = next((one for one in formats if holds(folder, one)), formats[0])
    # Read here already, so that a damaged file is refused before training.
    _read_scores(folder)
    work = Work(teacher, views, config.loader.batch_size, config.loader.workers, config.engine.precision)
    _complete(folder, fmt, record, views_of_each, work, console)
    return TeacherCache(folder, views_of_each, verify=local_rank() == 0)


def _formats(
    config: RunConfig, distiller: Distiller, teacher: Teacher, images: int, reads: Sequence[Reads]
) -> list[CacheFormat]:
    """Return the formats that serve a run, the smallest first; whole maps also serve methods that read them pooled."""
    read = reduce(or_, reads, distiller.needs.teacher)
    classes = distiller.student.spec.num_classes
    kept: dict[str, Any] = dict(top_k=config.cache_top_k, dtype=config.cache_dtype)
    return [
        stored_format(teacher, classes, images, one, **kept) for one in dict.fromkeys([read, replace(read, side=None)])
    ]


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

    def __init__(
        self, teacher: Teacher, views: Dataset[Any], batch_size: int, reads: Reads, precision: str = "32"
    ) -> None:
        """Run the teacher on every view once, at the precision of the run, and keep what is read of it."""
        device = teacher.scale.device
        size = len(views)  # type: ignore[arg-type]
        outputs = []
        with torch.inference_mode():
            for batch in make_loader(views, ViewSampler(size, batch_size)):
                with autocast(device, precision):
                    output = teacher(batch.images.to(device), stages=bool(reads.stages))
                outputs.append(_read_part(output, reads).map(lambda values: values.cpu()))
        self._outputs = BackboneOutput(
            None if outputs[0].logits is None else torch.cat([one.require_logits() for one in outputs]),
            torch.cat([one.embedding for one in outputs]),
            tuple(torch.cat(maps) for maps in zip(*(one.require_stages() for one in outputs), strict=True))
            if reads.stages
            else None,
        )

    def read(self, keys: list[Key]) -> BackboneOutput:
        """Return the outputs of a batch."""
        return self._outputs.map(lambda values: values[[index for index, _ in keys]])


def _read_part(output: BackboneOutput, reads: Reads) -> BackboneOutput:
    """Return the output with the stage maps that are read, pooled as they are read; the others are empty."""
    if output.stages is None:
        return output
    maps = enumerate(output.stages, 1)
    kept = tuple(pooled(m, reads.side) if n in reads.stages else m.new_empty(len(m), 0) for n, m in maps)
    return output._replace(stages=kept)


def scored_once(
    cache: TeacherCache, data: ImageData, augment: AugmentConfig, score: Callable[[], ScoredModel]
) -> ScoredModel:
    """Return the teacher's scores on the test split: those of an earlier run on this cache, or new ones, stored now."""
    labels = hashlib.sha256(np.asarray(data.test.labels, dtype=np.int64).tobytes()).hexdigest()[:16]
    key = f"{data.name}, {len(data.test)} images, labels {labels}, {augment.crop_mode} {augment.crop_pct}"
    if (sample := sampled_contents(data.test)) is not None:
        key += f", sample {hashlib.sha256(sample).hexdigest()[:16]}"
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
        return TypeAdapter(dict[str, ScoredModel]).validate_json(read_plain(path))
    except (OSError, ValidationError) as error:
        raise UserError(f"{str(path)!r} is damaged: delete it, and the teacher is scored again") from error
