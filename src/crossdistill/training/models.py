"""The models of a run, built from its settings."""

import torch
from timm.layers import convert_sync_batchnorm

from crossdistill.backbones import Backbone, create_backbone
from crossdistill.config import ModelConfig, RunConfig
from crossdistill.config.code import is_transformers
from crossdistill.data import ImageData
from crossdistill.data.classes import match_classes
from crossdistill.distiller import Distiller, create_distiller
from crossdistill.methods import MethodChoice
from crossdistill.teacher import Teacher, make_teacher
from crossdistill.training.teachers import build_teachers
from crossdistill.types import Needs


def build_models(config: RunConfig, choice: MethodChoice, data: ImageData) -> Distiller:
    """Build student, teachers and method of a run, with initial weights from its seed. Raises UserError."""
    student, teachers = initial_models(config, choice.needs, data)
    if config.engine.sync_batchnorm:
        # Not Lightning's flag: torch's converter drops the activation inside timm's norm layers.
        student.model = convert_sync_batchnorm(student.model)
    return create_distiller(
        choice,
        student=student,
        teacher=teachers,
        teacher_weights=config.teacher_weights if teachers else None,
        task_weight=config.optim.task_weight,
        label_smoothing=config.optim.label_smoothing,
        balance=config.optim.balance,
        labelled=data.labelled,
        partly=config.loader.unlabelled is not None,
    )


def initial_models(config: RunConfig, needs: Needs, data: ImageData) -> tuple[Backbone, list[Backbone]]:
    """Build student and teachers of a run, with initial weights from its seed. Raises UserError."""
    torch.manual_seed(config.seed)

    def teachers() -> list[Backbone]:
        if not needs.teacher:
            return []
        return build_teachers(config.teachers, config.model, data, needs.teacher, config.trust_code)

    if data.labelled:
        return build_student(config.student, config.model, config.img_size, data), teachers()
    # Without labels the student has the teacher's classes where a method reads the teacher's logits, else none.
    built = teachers()
    counts = {teacher.spec.num_classes for teacher in built}
    classes = counts.pop() if needs.teacher.logits and len(counts) == 1 else 0
    student = build_student(config.student, config.model, config.img_size, data, classes)
    if classes:
        student.class_names = next((one.class_names for one in built if one.class_names is not None), None)
    return student, built


def rebuild_teacher(config: RunConfig, needs: Needs, data: ImageData) -> Teacher | None:
    """Build the teacher of a run once more, after it was released."""
    student, teachers = initial_models(config, needs, data)
    return make_teacher(teachers, student, config.teacher_weights)


def build_student(
    name: str, model: ModelConfig, img_size: int | str | None, data: ImageData, num_classes: int | None = None
) -> Backbone:
    """Build the student of a run, with the classes of the data unless others are given. Raises UserError."""
    student = create_backbone(
        name,
        num_classes=data.num_classes if num_classes is None else num_classes,
        in_chans=data.channels,
        img_size=img_size,
        pretrained=model.student_pretrained,
        checkpoint=model.student_checkpoint,
        checkpoint_key=model.student_checkpoint_key,
        small_images=model.stem == "small" and not is_transformers(name),
        stages=model.student_stages,
        new_head=model.new_head,
        **model.student_args,
    )
    if data.labelled:
        match_classes(student, model.student_checkpoint or name, data)
        student.class_names = data.class_names
    return student
