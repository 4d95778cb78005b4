"""What a stored output depends on, as a record that two caches can be told apart by, and told why."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from torch.utils.data import Dataset

from crossdistill.config import RunConfig
from crossdistill.data.datasets import Files, Images, Part
from crossdistill.data.resident import ResidentViews
from crossdistill.data.transforms import crop_kind
from crossdistill.teacher import Teacher, TeacherGroup
from crossdistill.types import BackboneSpec

VERSION = 1
"""Raised with every change of this code that makes other views or other stored numbers."""
_IMAGES_LOOKED_AT = 256
_VIEWS_LOOKED_AT = 16


def fingerprint(
    config: RunConfig, teacher: Teacher | TeacherGroup, images: Images, views: Dataset[Any], spec: BackboneSpec
) -> dict[str, Any]:
    """Describe teacher, data, views and code: equal records mean interchangeable stored outputs.

    Weights are hashed whole, labels too; of the images 256 spread over the set are decoded and
    hashed, and of files all names and sizes. Of the views some are made and their pixels hashed, so a library
    that draws other random numbers is noticed as well.
    """
    student_sees = {"mean": list(spec.mean), "std": list(spec.std)}
    size = _get(views, 0)[0].shape[-1]
    augment = config.augment
    return {
        "version": VERSION,
        "teacher": {
            "name": teacher.spec.name,
            "weights": _hash(_weights(teacher)),
            "built": [_built(member) for member in teacher.members],
            "timm": timm.__version__,
            "img_size": [member.backbone.img_size for member in teacher.members],
            "normalisation": [[list(m.spec.mean), list(m.spec.std)] for m in teacher.members],
            "mixed": _mixing(teacher),
            "precision": config.engine.precision,
        },
        "data": {
            "images": len(images),
            "labels": _hash([np.asarray(images.labels, dtype=np.int64).tobytes()]),
            "files": _hash(_files(images)),
            "pixels": _hash(_pictures(images)),
        },
        "transform": {
            "seed": config.loader.view_seed,
            "img_size": size,
            "resident": isinstance(views, ResidentViews),
            "crop": crop_kind(augment, size),
            "scale": list(augment.scale),
            "hflip": augment.hflip,
            "color_jitter": augment.color_jitter,
            "auto_augment": augment.auto_augment,
            "erasing": augment.erasing,
            # What is erased is filled with noise of the student's normalisation.
            "normalisation": student_sees if augment.erasing else None,
            "pixels": _hash(_views(views, spec)),
        },
    }


def short_name(record: dict[str, Any]) -> str:
    """Give twelve hexadecimal digits that stand for a record."""
    return _hash([json.dumps(record, sort_keys=True).encode()])[:12]


def difference(stored: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """Say in a phrase what two records differ in; None where they are equal."""
    if stored.get("version") != wanted["version"]:
        return f"another version of this code ({stored.get('version')}, this is {wanted['version']})"
    for part in ("teacher", "data", "transform"):
        before, now = stored.get(part, {}), wanted[part]
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            key = changed[0]
            said = "" if _is_hash(now[key]) else f" was {before.get(key)!r}, is now {now[key]!r}"
            return f"another {part}: {key}{said or ' differ'}"
    return None


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _hash(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _weights(teacher: Teacher | TeacherGroup) -> Any:
    for member in teacher.members:
        for name, tensor in member.backbone.state_dict().items():
            yield f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _built(member: Teacher) -> Any:
    """Give what a model is built with beside its weights: the same weights can be run in other ways."""
    recipe = member.backbone.recipe
    return json.loads(json.dumps({key: recipe.get(key) for key in ("model_args", "small_images", "stages")}))


def _mixing(teacher: Teacher | TeacherGroup) -> Any:
    if isinstance(teacher, Teacher):
        return None
    return "confidence" if teacher.by_confidence else [round(share, 6) for share in teacher.log_shares.exp().tolist()]


def _spread(size: int, count: int) -> list[int]:
    chosen: list[int] = np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()
    return chosen


def _pictures(images: Images) -> Any:
    for index in _spread(len(images), _IMAGES_LOOKED_AT):
        picture = images.read(index)
        yield f"{picture.mode}{picture.size}".encode()
        yield picture.tobytes()


def _files(images: Images) -> Any:
    """Give names and sizes of files; nothing for other kinds of data, whose rows are decoded above."""
    from pathlib import Path

    chosen: Any = np.arange(len(images))
    while isinstance(images, Part):
        chosen, images = images.indices[chosen], images.images
    if isinstance(images, Files):
        for index in chosen:
            path = Path(images.paths[int(index)])
            yield f"{path.parent.name}/{path.name}:{path.stat().st_size}\n".encode()


def _views(views: Dataset[Any], spec: BackboneSpec) -> Any:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (spec.mean, spec.std))
    for index in _spread(len(views), _VIEWS_LOOKED_AT):  # type: ignore[arg-type]
        for view in (0, 1):
            image = _get(views, index, view)[0].cpu()
            # As bytes: students of another normalisation see the same view.
            yield ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()


def _get(views: Dataset[Any], index: int, view: int = 0) -> Any:
    get: Callable[[tuple[int, int]], Any] = views.__getitem__
    return get((index, view))
