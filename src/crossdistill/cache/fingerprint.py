"""What stored outputs depend on, as a record by which two caches can be compared."""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch.utils.data import Dataset

from crossdistill.backbones.transformers_network import VisionNetwork
from crossdistill.config.code import is_code, is_transformers
from crossdistill.config.data import AugmentConfig
from crossdistill.data.datasets import Arrays, Images, base_of
from crossdistill.data.folder import Files
from crossdistill.data.look import bytes_of, content_marks
from crossdistill.data.mixed import Joined
from crossdistill.data.resident import ResidentViews
from crossdistill.image_size import ImageSize, image_size, written
from crossdistill.teacher import Ensemble, Teacher
from crossdistill.types import BackboneSpec

VERSION = 5
"""Increased with every change of this code that alters the views or the stored numbers."""
_SAMPLED_IMAGES = 256
_SAMPLED_VIEWS = 16
_WHOLE_BYTES = 2**30
"""Size of a data set up to which all its images are hashed."""
_LIBRARIES = ("torch", "timm", "torchvision", "transformers", "crossdistill")
"""Packages whose modules are described by a version."""


def fingerprint(
    teacher: Teacher,
    images: Images,
    views: Dataset[Any],
    student: BackboneSpec,
    *,
    augment: AugmentConfig,
    view_seed: int,
    precision: str,
    drawn_size: ImageSize | None = None,
) -> dict[str, Any]:
    """Describe teacher, data, views and code: equal records mean interchangeable stored outputs.

    Weights are hashed completely, labels too, names and sizes of all files, and up to 1 GiB their contents; 256 images
    spread over the set are decoded and hashed. Of a teacher from other code the files of that code, and of its factory,
    are hashed. Some of
    the views are made and their pixels hashed, so that a library that draws other random numbers is noticed as well.
    `drawn_size` is the student's input size where the views are those of the teacher's own.
    """
    return {
        "version": VERSION,
        "teacher": {**_describe_teacher(teacher), "precision": precision},
        "data": _describe_data(images),
        "transform": {"seed": view_seed, **_own(augment, drawn_size), **_describe_views(views, student, augment)},
    }


def _describe_teacher(teacher: Teacher) -> dict[str, Any]:
    members = teacher.members
    return {
        "name": teacher.spec.name,
        "weights": _hash(_weights(teacher)),
        "built": [_built(member) for member in members],
        "structure": _hash(_structure(member).encode() for member in members),
        "timm": timm.__version__,
        "img_size": [written(member.backbone.img_size) for member in members],
        **_libraries(members),
        "normalisation": [[list(member.spec.mean), list(member.spec.std)] for member in members],
        "mixed": teacher.backbone.mixing_weights if isinstance(teacher.backbone, Ensemble) else None,
    }


def _libraries(members: Sequence[Teacher]) -> dict[str, str]:
    """Return what runs teachers of other kinds than timm's: the version of a library, a digest of other code."""
    modules = {type(module).__module__ for member in members for module in member.backbone.model.modules()}
    found = {}
    if any(is_transformers(member.spec.name) for member in members):
        found["transformers"] = version("transformers")
    if any(name.partition(".")[0] == "torchvision" for name in modules):
        found["torchvision"] = version("torchvision")
    # The factory of the user's own network, which may be made of torch's modules alone.
    modules |= {member.spec.name.partition(":")[0] for member in members if is_code(member.spec.name)}
    own = sorted(name for name in modules if name.partition(".")[0] not in _LIBRARIES)
    files = [getattr(sys.modules.get(name), "__file__", None) for name in own]
    if own:
        found["code"] = _hash(Path(file).read_bytes() for file in files if file is not None)
    return found


def _describe_data(images: Images) -> dict[str, Any]:
    return {
        "images": len(images),
        "labels": _hash([np.asarray(images.labels, dtype=np.int64).tobytes()]),
        "contents": _hash(_contents(images)),
        "pixels": _hash(_pixels(images)),
    }


def _own(augment: AugmentConfig, drawn_size: ImageSize | None) -> dict[str, Any]:
    """Return what is special to views of the teacher's own size; nothing for those that the student sees."""
    if drawn_size is None:
        return {}
    # A resized crop is the same part of an image at all sizes.
    depends = augment.decided(drawn_size).crop == "padded" or augment.erasing > 0
    return {"teacher_view": "own", "drawn_size": written(drawn_size) if depends else None}


def _describe_views(views: Dataset[Any], student: BackboneSpec, augment: AugmentConfig) -> dict[str, Any]:
    height, width = _get(views, 0)[0].shape[-2:]
    size = image_size((height, width))
    augment = augment.decided(size)
    return {
        "img_size": written(size),
        "resident": isinstance(views, ResidentViews),
        "crop": augment.crop,
        "crop_mode": augment.crop_mode,
        "scale": list(augment.scale),
        "hflip": augment.hflip,
        "color_jitter": augment.color_jitter,
        "auto_augment": augment.auto_augment,
        "erasing": augment.erasing,
        # Erased areas are filled with noise of the student's normalisation.
        "normalisation": {"mean": list(student.mean), "std": list(student.std)} if augment.erasing else None,
        "pixels": _hash(_views(views, student)),
    }


def short_name(record: dict[str, Any]) -> str:
    """Return twelve hexadecimal digits that identify a record."""
    return _hash([json.dumps(record, sort_keys=True).encode()])[:12]


def difference(stored: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Describe in a phrase how two records differ; None where they are equal."""
    if stored.get("version") != expected["version"]:
        return f"another version of this code ({stored.get('version')}, this is {expected['version']})"
    for part in ("teacher", "data", "transform"):
        before, now = stored.get(part), expected[part]
        before = before if isinstance(before, dict) else {}
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            key = changed[0]
            values = "" if _is_hash(now[key]) else f" was {before.get(key)!r}, is now {now[key]!r}"
            return f"another {part}: {key}{values or ' differ'}"
    return None


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _hash(parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _weights(teacher: Teacher) -> Any:
    for member in teacher.members:
        for name, tensor in member.backbone.state_dict().items():
            yield f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode()
            yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _built(member: Teacher) -> Any:
    """Return how a model is built: the same weights can be run in other ways."""
    args = member.backbone.args
    built = {"model_args": args.model_args or None, "small_images": args.small_images, "stages": args.stages}
    return json.loads(json.dumps(built))


def _structure(member: Teacher) -> str:
    """Return the modules of a network as text, and a transformers model's own settings."""
    model = member.backbone.model
    text = re.sub(r" at 0x[0-9a-f]+", "", str(model))
    if isinstance(model, VisionNetwork):
        config: Any = model.body.config
        passing = ("transformers_version", "torch_dtype", "dtype")
        settings = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in passing}
        text += json.dumps(settings, sort_keys=True, default=str)
    return text


def _spread(size: int, count: int) -> list[int]:
    chosen: list[int] = np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()
    return chosen


def _pixels(images: Images) -> Any:
    for index in _spread(len(images), _SAMPLED_IMAGES):
        image = images.read(index)
        yield f"{image.mode}{image.size}".encode()
        yield image.tobytes()


def _contents(images: Images) -> Any:
    """Return names and sizes of files, and of a set that is not large digests of all images, before decoding."""
    if isinstance(images, Joined):
        for part in images.parts:
            yield from _contents(part)
        return
    base, chosen = base_of(images)
    if isinstance(base, Files):
        for index in chosen:
            path = Path(base.paths[int(index)])
            yield f"{path.parent.name}/{path.name}:{path.stat().st_size}\n".encode()
    if isinstance(base, Arrays):
        yield np.ascontiguousarray(np.asarray(base.pixels)[chosen])
    elif (bytes_of(images) or 0) <= _WHOLE_BYTES:
        yield "\n".join(content_marks(images) or ()).encode()


def _views(views: Dataset[Any], student: BackboneSpec) -> Any:
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (student.mean, student.std))
    for index in _spread(len(views), _SAMPLED_VIEWS):  # type: ignore[arg-type]
        for view in (0, 1):
            image = _get(views, index, view)[0].cpu()
            # As bytes, so that students with another normalisation have the same views.
            yield ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()


def _get(views: Dataset[Any], index: int, view: int = 0) -> Any:
    get: Callable[[tuple[int, int]], Any] = views.__getitem__
    return get((index, view))
