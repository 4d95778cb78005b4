"""The settings of the run that trains a teacher."""

from dataclasses import replace
from typing import Any

from crossdistill.config.files import with_changes
from crossdistill.config.model import ModelConfig
from crossdistill.config.run import RunConfig
from crossdistill.errors import UserError


def with_teacher_training(config: RunConfig) -> RunConfig:
    """Apply the settings in `teacher_training`. Raises UserError."""
    # The teacher is trained without a cache, so its training may use mixup.
    changes: dict[str, Any] = {**config.teacher_training, "cache": "off", "teacher_training": {}}
    return with_changes(config, changes, "teacher_training: ")


def teacher_config(config: RunConfig) -> RunConfig:
    """Turn the settings of a student's run into those of the run that trains its teacher, on the labels alone.

    The settings in `teacher_training` replace the others. Raises UserError unless exactly one teacher is named.
    """
    config = with_teacher_training(config)
    name, checkpoint, img_size = config.teacher, config.teacher_checkpoint, config.model.teacher_img_size
    if name is None:
        raise UserError("no teacher is named: --teacher NAME")
    if not isinstance(name, str):
        raise UserError("several teachers are trained one after the other; name one of them: --teacher NAME")
    if isinstance(checkpoint, list):
        raise UserError("a teacher starts from one checkpoint; several are given")
    if isinstance(img_size, list):
        raise UserError("model.teacher_img_size lists several sizes; a teacher is trained at one")
    return replace(
        config,
        role="teacher",
        student=name,
        img_size=img_size or config.img_size,
        teacher=None,
        teacher_checkpoint=None,
        teacher_weights=None,
        method="none",
        options={},
        loader=replace(config.loader, unlabelled=None),
        model=_as_student(config.model, checkpoint),
        optim=replace(config.optim, task_weight=1.0),
    )


def _as_student(model: ModelConfig, checkpoint: str | None) -> ModelConfig:
    """Return settings in which the teacher's model is the one that is trained."""
    return ModelConfig(
        stem=model.teacher_stem or model.stem,
        student_args=model.teacher_args,
        student_stages=model.teacher_stages,
        student_pretrained=model.teacher_pretrained,
        student_checkpoint=checkpoint,
        student_checkpoint_key=model.teacher_checkpoint_key,
        new_head=model.new_head,
    )
