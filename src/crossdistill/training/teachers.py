"""The teachers of a run: built or loaded, with their classes in the data's order, and looked at before training."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossdistill.backbones import Backbone, create_backbone, load_backbone
from crossdistill.backbones.args import read_args
from crossdistill.backbones.build import classes_of_weights
from crossdistill.backbones.sources import plain_name
from crossdistill.config import ModelConfig
from crossdistill.config.code import is_transformers
from crossdistill.data import ImageData
from crossdistill.data.class_names import name_difference
from crossdistill.data.classes import match_classes, match_names
from crossdistill.errors import UserError
from crossdistill.image_size import written
from crossdistill.training.weights import has_weights, random_weights_error
from crossdistill.types import Reads


def build_teachers(
    teachers: Sequence[tuple[str | None, str | None]],
    model: ModelConfig,
    data: ImageData,
    reads: Reads,
    trust_code: bool,
) -> list[Backbone]:
    """Build teachers by name and checkpoint, or load them from the folders of runs. Raises UserError.

    Classes with known names are put into the data's order; a method that reads the logits of others refuses them. A run
    whose model is code must be named as well, or trusted.
    """
    sizes = model.teacher_img_size
    listed: Sequence[int | str | None] = sizes if isinstance(sizes, list) else [sizes] * len(teachers)
    if len(listed) != len(teachers):
        raise UserError(f"model.teacher_img_size lists {len(listed)} sizes for {len(teachers)} teachers")
    built: list[Backbone] = []
    for (name, checkpoint), img_size in zip(teachers, listed, strict=True):
        if checkpoint is not None and Path(checkpoint).is_dir():
            teacher = _load_teacher(name, checkpoint, img_size, model, trust_code)
        else:
            teacher = _build_teacher(name, checkpoint, img_size, model, data)
        if isinstance(model.teacher_classes, list):
            _name_classes(teacher, model.teacher_classes, checkpoint or name or "")
        _match_teacher(teacher, checkpoint or name or "", data)
        if not data.labelled and built and reads.logits:
            _match_first(teacher, checkpoint or name or "", built[0])
        built.append(teacher)
    return built


def _name_classes(teacher: Backbone, names: list[str], owner: str) -> None:
    """Name the classes of a teacher that does not state them. Raises UserError for one that states others."""
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"model.teacher_classes names the class {twice!r} twice")
    if teacher.class_names is None:
        teacher.class_names = tuple(names)
    elif list(teacher.class_names) != names:
        raise UserError(
            f"model.teacher_classes is another list than the teacher {owner!r} states: "
            + (name_difference("the teacher", teacher.class_names, "the list", names) or "the order differs")
            + "; leave it out, or name the file's classes only where no teacher states its own"
        )


def _match_first(teacher: Backbone, owner: str, first: Backbone) -> None:
    """Put a teacher's classes into the order of the first teacher's: without labels nothing else states an order.

    Raises UserError for classes of other names.
    """
    if first.class_names is not None and teacher.class_names is not None:
        match_names(teacher, owner, first.class_names, "the first teacher")


def _match_teacher(teacher: Backbone, owner: str, data: ImageData) -> None:
    if not data.labelled:
        return
    # A method that reads the logits of other classes refuses the teacher by itself.
    with contextlib.suppress(UserError):
        match_classes(teacher, owner, data)


def _load_teacher(
    name: str | None, run: str, img_size: int | str | None, model: ModelConfig, trust_code: bool
) -> Backbone:
    """Load the model of a finished run. Raises UserError for settings that contradict it."""
    teacher = load_backbone(run, trust_code=trust_code or name == read_args(run).name)
    built = teacher.args
    for field, given, stored in (
        ("teacher_img_size", img_size, None if built.img_size is None else written(built.img_size)),
        ("teacher_args", model.teacher_args or None, built.model_args),
        ("teacher_stages", model.teacher_stages, built.stages),
        ("teacher_classes", _number_of_classes(model), built.num_classes),
        ("teacher_pretrained", model.teacher_pretrained or None, "the weights of the run"),
    ):
        if given is not None and given != stored:
            raise UserError(f"model.{field} is {given!r}, but the run {run!r} has {stored!r}; leave it out")
    if name is not None and plain_name(name) != teacher.spec.name:
        raise UserError(f"{run!r} holds a {teacher.spec.name!r}, but --teacher is {name!r}")
    return teacher


def _number_of_classes(model: ModelConfig) -> int | None:
    classes = model.teacher_classes
    assert not isinstance(classes, str), "the file is read before"
    return len(classes) if isinstance(classes, list) else classes


def _build_teacher(
    name: str | None, checkpoint: str | None, img_size: int | str | None, model: ModelConfig, data: ImageData
) -> Backbone:
    if name is None:
        raise UserError(f"teacher_checkpoint {checkpoint!r} is not the folder of a run; name its model with --teacher")
    built: dict[str, Any] = dict(
        in_chans=data.channels,
        img_size=img_size,
        checkpoint=checkpoint,
        checkpoint_key=model.teacher_checkpoint_key,
        small_images=model.teacher_stem == "small" and not is_transformers(name),
        stages=model.teacher_stages,
        **model.teacher_args,
    )
    classes = _number_of_classes(model)
    if classes is None and (model.teacher_pretrained or checkpoint is not None or is_transformers(name)):
        # A classifier of other classes would be new, and teach noise.
        classes = classes_of_weights(name, **built)
    if classes is None and not data.labelled:
        if not has_weights(name, checkpoint, pretrained=model.teacher_pretrained):
            raise random_weights_error(name, trusted=False)
        raise UserError(f"how many classes the teacher {name!r} has is not known: give --model.teacher-classes")
    classes = data.num_classes if classes is None else classes
    return create_backbone(name, classes, pretrained=model.teacher_pretrained, **built)
