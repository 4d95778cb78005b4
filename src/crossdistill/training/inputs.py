"""What a run reads: its images, the settings decided from them, the views, and digests of all its inputs."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import Dataset

from crossdistill.backbones import Backbone
from crossdistill.backbones.args import read_args, weights_path
from crossdistill.backbones.build import own_img_size
from crossdistill.config import AugmentConfig, LoaderConfig, RunConfig
from crossdistill.config.resolve import resolve
from crossdistill.data import ImageData, Images
from crossdistill.data.loaders import Views
from crossdistill.data.look import bytes_of, look, place, sampled_contents, unreadable_error
from crossdistill.data.mixed import Joined, labelled_part
from crossdistill.data.transforms import eval_transform
from crossdistill.data.views import held_out_views, teacher_training_views, training_views
from crossdistill.errors import UserError, first_line
from crossdistill.files import file_digest
from crossdistill.image_size import ImageSize
from crossdistill.methods import MethodChoice
from crossdistill.teacher import Teacher
from crossdistill.training.engine import is_first_process
from crossdistill.training.weights import has_small_stem

_MOST_BYTES_DECODED = 2**28
"""Bytes of all images up to which every one is decoded before training."""


def decide(config: RunConfig, choice: MethodChoice, data: ImageData) -> tuple[RunConfig, MethodChoice]:
    """Decide every open setting of a run, and the options of its method, from the data. Raises UserError."""
    choice = choice.for_images(len(data.train))
    classes = config.model.teacher_classes
    if isinstance(classes, str):
        config = replace(config, model=replace(config.model, teacher_classes=_read_names(classes)))
    return replace(resolve(config, data, own_img_size, _run_size, has_small_stem), options=choice.plain), choice


def _run_size(folder: str) -> ImageSize:
    args = read_args(folder)
    return args.img_size or own_img_size(args.name)


def _read_names(file: str) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"model.teacher_classes {file!r} cannot be read as a text file: {first_line(error)}") from error
    return [line.strip() for line in lines if line.strip()]


def report_data(data: ImageData, console: Console) -> None:
    """Print what was read, what was left out, what looks wrong, and what has changed since the run began."""
    if not is_first_process():
        return
    changes = [f"crossdistill: note: {phrase}" for phrase in data.changes.phrases()]
    for line in (*data.about, *changes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def check_decoding(config: RunConfig, data: ImageData) -> None:
    """Decode all images once where they are few, so that one that is cut short is found before training.

    Images that are kept on the device are decoded before training in any case. Raises UserError.
    """
    if config.loader.resident or config.loader.on_bad_image == "skip":
        return
    train = data.train.parts if isinstance(data.train, Joined) else (data.train,)
    parts = (*train, data.val, data.test)
    if sum(bytes_of(images) or 0 for images in parts) > _MOST_BYTES_DECODED:
        return
    for images in parts:
        for number, reason in look(images, decode=True).unreadable.items():
            raise unreadable_error(place(images, number), reason)


def check_counts(config: RunConfig, data: ImageData, processes: int) -> None:
    """Raise UserError for splits that are too small for the processes or for mixing."""
    name, held_out = min(("validation", data.val), ("test", data.test), key=lambda split: len(split[1]))
    if len(held_out) < processes:
        raise UserError(f"the {name} split has {len(held_out)} images, fewer than the {processes} processes")
    own = len(data.train) // processes
    if config.loader.batch_size > own and config.augment.mixes and own % 2:
        raise UserError(f"mixup and CutMix pair the images of a batch; the one batch of {own} is odd")


def own_size(augment: AugmentConfig, teacher: Teacher | None) -> ImageSize | None:
    """Return the size at which views are rendered for the teacher; None where it sees the student's."""
    return teacher.img_size if augment.teacher_view == "own" and teacher is not None else None


def make_views(
    loader: LoaderConfig,
    augment: AugmentConfig,
    seed: int,
    data: ImageData,
    student: Backbone,
    device: torch.device,
    teacher_size: ImageSize | None = None,
    *,
    stored: bool = False,
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Make the data sets of training and held-out views. Raises UserError.

    With `teacher_size` (of `own_size`) they render each view for the teacher as well, unless its output is stored.
    """
    assert loader.resident is not None
    seed = seed if loader.views is None else loader.view_seed
    common: dict[str, Any] = dict(
        resident=loader.resident, device=device, teacher_size=teacher_size, for_teacher=not stored
    )
    train = training_views(data.train, augment, student.spec, student.img_size, seed=seed, **common)
    return train, held_out_views(data.val, augment, student.spec, student.img_size, **common)


def make_teacher_views(
    loader: LoaderConfig, augment: AugmentConfig, data: ImageData, student: Backbone, teacher_size: ImageSize
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Make the views of `make_views` as the teacher sees them, at its own size, normalised for the student."""
    train = teacher_training_views(
        data.train, augment, student.spec, student.img_size, teacher_size, seed=loader.view_seed
    )
    return train, Views(data.val, eval_transform(augment, student.spec, teacher_size))


def digests(config: RunConfig, data: ImageData, probed: ImageData | None = None) -> dict[str, str]:
    """Return digests of what a run starts from: classes, labels and parquet rows of every split, and its checkpoints.

    `probed` holds the images of probe_data.
    """
    found = data_digests(data)
    if probed is not None:
        for name, part in (("training", probed.train), ("validation", probed.val), ("test", probed.test)):
            found |= _images_digests(f"probe_data {name}", part, listed=False)
    for setting, checkpoint in _checkpoints(config):
        path = Path(checkpoint)
        path = weights_path(path) if path.is_dir() else path
        if path.is_file():
            found[f"{setting} {path.name}"] = file_digest(path)[:16]
    return found


def data_digests(data: ImageData) -> dict[str, str]:
    """Return digests of the classes, and of labels and images of every split."""
    found = {"class names": _digest("\n".join([*data.class_names]).encode())}
    unlabelled = data.train.parts[1:] if isinstance(data.train, Joined) else ()
    for name, split in (("training", labelled_part(data.train)), ("validation", data.val), ("test", data.test)):
        found |= _images_digests(name, split, listed=data.files is not None)
    for number, part in enumerate(unlabelled, 1):
        found |= _images_digests(f"unlabelled {number}", part, listed=False)
    return found


def _images_digests(name: str, images: Images, *, listed: bool) -> dict[str, str]:
    """Return digests of the labels and of a sample of the images; files that are `listed` have a list (split.json)."""
    found = {f"{name} labels": _digest(np.asarray(images.labels, dtype=np.int64).tobytes())}
    if not listed and (sample := sampled_contents(images)) is not None:
        found[f"{name} images"] = _digest(sample)
    return found


def _checkpoints(config: RunConfig) -> Iterable[tuple[str, str]]:
    for number, (_, checkpoint) in enumerate(config.teachers):
        if checkpoint is not None:
            yield f"teacher_checkpoint {number + 1}", checkpoint
    if config.model.student_checkpoint is not None:
        yield "student_checkpoint", config.model.student_checkpoint


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
