"""The settings of the run that trains a teacher."""

from dataclasses import replace
from typing import Any

from crossdistill.config.files import with_changes
from crossdistill.config.run import RunConfig
from crossdistill.errors import UserError


def with_teacher_training(config: RunConfig) -> RunConfig:
    """Apply the settings in `teacher_training`. Raises UserError."""
    # Without a cache, which excludes mixup: the teacher's own training has none.
    changes: dict[str, Any] = {**config.teacher_training, "cache": "off", "teacher_training": {}}
    return with_changes(config, changes, "teacher_training: ")


def teacher_config(config: RunConfig) -> RunConfig:
    """Turn the settings of a student's run into those of the run that trains its teacher, on the labels alone.

    The settings in `teacher_training` replace the others. Raises UserError unless exactly one teacher is named.
    """
    config = with_teacher_training(config)
    if config.teacher is None:
        raise UserError("no teacher is named: --teacher NAME")
    if not isinstance(config.teacher, str):
        raise UserError("several teachers are trained one after the other; name one of them: --teacher NAME")
    if isinstance(config.teacher_checkpoint, list):
        raise UserError("a teacher starts from one checkpoint; several are given")
    if isinstance(config.model.teacher_img_size, list):
        raise UserError("model.teacher_img_size lists several sizes; a teacher is trained at one")
    model = replace(
        config.model,
        stem=config.model.teacher_stem or config.model.stem,
        student_args=config.model.teacher_args,
        student_stages=config.model.teacher_stages,
        student_pretrained=config.model.teacher_pretrained,
        student_checkpoint=config.teacher_checkpoint,
        student_checkpoint_key=config.model.teacher_checkpoint_key,
        teacher_checkpoint_key=None,
        teacher_args={},
        teacher_stages=None,
        teacher_pretrained=False,
        teacher_stem=None,
        teacher_img_size=None,
        teacher_classes=None,
    )
    return replace(
        config,
        role="teacher",
        student=config.teacher,
        img_size=config.model.teacher_img_size or config.img_size,
        teacher=None,
        teacher_checkpoint=None,
        teacher_weights=None,
        method="none",
        options={},
        model=model,
        optim=replace(config.optim, task_weight=1.0),
    )
