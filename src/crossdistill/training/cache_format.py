"""What a teacher cache has to hold for a run, and the folder of a cache that does."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch

from crossdistill.backbones.pooling import pooled
from crossdistill.cache import CacheFormat
from crossdistill.cache.fingerprint import short_name
from crossdistill.cache.store import LOCKS, MANIFEST, read_manifest
from crossdistill.errors import UserError
from crossdistill.image_size import sides_of
from crossdistill.teacher import Teacher
from crossdistill.types import Reads

_ROOT = Path("runs") / "cache"
_OURS = (LOCKS, ".gitignore")
"""What a cache that has no manifest yet may hold."""
_SHARD_BYTES = 256 * 2**20
_LEAST_IMAGES, _MOST_IMAGES = 64, 8192
"""Size of a shard, within these numbers of images. It is kept in memory until it is written."""


def stored_format(
    teacher: Teacher,
    classes: int,
    images: int,
    reads: Reads,
    *,
    top_k: int | None,
    dtype: Literal["float16", "float32"],
) -> CacheFormat:
    """Decide what to store for methods that read this of the teacher together.

    The embedding always; stage maps that are read; logits unless the teacher has other classes than the student's
    `classes`, which no method can read.
    """
    shapes = _stage_shapes(teacher, reads)
    spec = teacher.spec
    stored = spec.num_classes if spec.num_classes == classes else 0
    fmt = CacheFormat(images, spec.embedding_dim, stored, top_k if stored else None, shapes, dtype)
    return replace(fmt, shard_images=min(_MOST_IMAGES, max(_LEAST_IMAGES, _SHARD_BYTES // fmt.row.itemsize)))


@torch.no_grad()
def _stage_shapes(teacher: Teacher, reads: Reads) -> tuple[tuple[int, tuple[int, int, int]], ...]:
    if not reads.stages:
        return ()
    backbone = teacher.backbone
    like = next(backbone.parameters())
    images = like.new_zeros(1, backbone.spec.in_chans, *sides_of(backbone.img_size))
    maps = backbone(images, stages=True).require_stages()
    shapes = {stage: pooled(maps[stage - 1], reads.side).shape for stage in reads.stages}
    return tuple((stage, (shape[1], shape[2], shape[3])) for stage, shape in shapes.items())


def holds(folder: Path, fmt: CacheFormat) -> bool:
    """Return whether there is a cache in a folder that has the stage maps of a format."""
    return (folder / MANIFEST).exists() and set(fmt.stages) <= set(read_manifest(folder)[0].stages)


def cache_folder(
    cache: str, data: str, teacher: Teacher, formats: Sequence[CacheFormat], record: dict[str, object]
) -> Path:
    """Return the folder that is given, or that of a cache which holds what one of the formats needs, or a new one."""
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
    plain = asdict(replace(formats[0], stages=(), shard_images=1))
    name = f"{data}-{teacher.spec.name}-{short_name({**record, 'format': plain})}"
    name = name.replace("/", "_").replace(":", "_").replace(" ", "")
    for manifest in sorted(_ROOT.glob(f"{name}*/{MANIFEST}")):
        if any(holds(manifest.parent, fmt) for fmt in formats):
            return manifest.parent
    return _ROOT / "-stage".join(
        [name, *(f"{number}-{height}x{width}" for number, (_, height, width) in formats[0].stages)]
    )
