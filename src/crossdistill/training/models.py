"""The models of a run, built from its settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from timm.layers import convert_sync_batchnorm
from timm.optim import get_optimizer_info, list_optimizers

from crossdistill.backbones import Backbone, create_backbone, load_backbone
from crossdistill.backbones.args import read_args, read_class_names
from crossdistill.backbones.build import classes_of_weights
from crossdistill.config import ModelConfig, RunConfig
from crossdistill.data import ImageData
from crossdistill.data.classes import check_class_order
from crossdistill.data.views import sample_loader
from crossdistill.distiller import Distiller, create_distiller
from crossdistill.errors import UserError, unknown
from crossdistill.evaluation.finite_teacher import check_finite
from crossdistill.evaluation.teacher_check import check_teacher
from crossdistill.methods import METHODS, MethodChoice, check_option_keys, choose_method, options_for
from crossdistill.progress import Tracked
from crossdistill.teacher import Teacher, make_teacher
from crossdistill.types import Reads


def check_settings(config: RunConfig, methods: Sequence[str] = ()) -> MethodChoice:
    """Return the run's method. Raises UserError for errors that can be found before any data is read.

    `methods` names further methods whose options the settings may hold.
    """
    choice = choose_method(config.method, options_for(config.method, config.options))
    others = check_option_keys(config.options, [config.method, *methods])
    for key, options in config.options.items():
        if key not in choice.plain and key not in others and key in METHODS:
            choose_method(key, options)
    if choice.needs.index and config.augment.mixes:
        raise UserError(f"method {config.method!r} stores images by number, so they cannot be mixed: turn mixup off")
    if choice.needs.teacher and not config.teachers:
        raise UserError(f"method {config.method!r} needs a teacher: --teacher NAME, or --teacher-checkpoint RUN")
    if choice.needs.teacher and config.teacher_weights is not None and len(config.teachers) < 2:
        raise UserError(f"teacher_weights {config.teacher_weights!r} mix several teachers, but there is one")
    _check_optimiser(config.optim.name)
    return choice


def _check_optimiser(name: str) -> None:
    if name not in list_optimizers():
        raise unknown("optimiser", name, list_optimizers())
    if get_optimizer_info(name).second_order:
        raise UserError(f"optim.name {name!r} needs second-order gradients, which a training step does not compute")


def build_models(config: RunConfig, choice: MethodChoice, data: ImageData) -> Distiller:
    """Build student, teachers and method of a run, with initial weights from its seed. Raises UserError."""
    torch.manual_seed(config.seed)
    student = build_student(config.student, config.model, config.img_size, data)
    needs = choice.needs
    teachers = _teachers_of(config, data, needs.teacher) if needs.teacher else []
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
    )


def rebuild_teacher(config: RunConfig, data: ImageData) -> Teacher | None:
    """Build the teacher of a run once more, after it was released."""
    # A teacher without a checkpoint has random weights, drawn from the seed after the student's.
    torch.manual_seed(config.seed)
    student = build_student(config.student, config.model, config.img_size, data)
    teachers = _teachers_of(config, data, Reads())
    return make_teacher(teachers, student, config.teacher_weights)


def build_student(name: str, model: ModelConfig, img_size: int | None, data: ImageData) -> Backbone:
    """Build the student of a run. Raises UserError."""
    return create_backbone(
        name,
        num_classes=data.num_classes,
        in_chans=data.channels,
        img_size=img_size,
        pretrained=model.student_pretrained,
        checkpoint=model.student_checkpoint,
        small_images=model.stem == "small",
        stages=model.student_stages,
        new_head=model.new_head,
        **model.student_args,
    )


def _teachers_of(config: RunConfig, data: ImageData, reads: Reads) -> list[Backbone]:
    return build_teachers(config.teachers, config.model, data, reads, config.trust_code)


def build_teachers(
    teachers: Sequence[tuple[str | None, str | None]],
    model: ModelConfig,
    data: ImageData,
    reads: Reads,
    trust_code: bool,
) -> list[Backbone]:
    """Build teachers by name and checkpoint, or load them from the folders of runs. Raises UserError.

    A run whose model is code must be named as well, or trusted. Where the logits are read, the classes of a finished
    run must be in the data's order.
    """
    sizes = model.teacher_img_size
    listed: Sequence[int | None] = sizes if isinstance(sizes, list) else [sizes] * len(teachers)
    if len(listed) != len(teachers):
        raise UserError(f"model.teacher_img_size lists {len(listed)} sizes for {len(teachers)} teachers")
    return [
        _load_teacher(name, checkpoint, img_size, model, data, reads, trust_code)
        if checkpoint is not None and Path(checkpoint).is_dir()
        else _build_teacher(name, checkpoint, img_size, model, data)
        for (name, checkpoint), img_size in zip(teachers, listed, strict=True)
    ]


def _load_teacher(
    name: str | None,
    run: str,
    img_size: int | None,
    model: ModelConfig,
    data: ImageData,
    reads: Reads,
    trust_code: bool,
) -> Backbone:
    """Load the model of a finished run. Raises UserError for settings that contradict it."""
    teacher = load_backbone(run, trust_code=trust_code or name == read_args(run).name)
    built = teacher.args
    for field, given, stored in (
        ("teacher_img_size", img_size, built.img_size),
        ("teacher_args", model.teacher_args or None, built.model_args),
        ("teacher_stages", model.teacher_stages, built.stages),
        ("teacher_classes", model.teacher_classes, built.num_classes),
        ("teacher_pretrained", model.teacher_pretrained or None, "the weights of the run"),
    ):
        if given is not None and given != stored:
            raise UserError(f"model.{field} is {given!r}, but the run {run!r} has {stored!r}; leave it out")
    if name not in (None, teacher.spec.name):
        raise UserError(f"{run!r} holds a {teacher.spec.name!r}, but --teacher is {name!r}")
    if reads.logits:
        check_class_order(read_class_names(run), run, data)
    return teacher


def _build_teacher(
    name: str | None, checkpoint: str | None, img_size: int | None, model: ModelConfig, data: ImageData
) -> Backbone:
    if name is None:
        raise UserError(f"teacher_checkpoint {checkpoint!r} is not the folder of a run; name its model with --teacher")
    built: dict[str, Any] = dict(
        in_chans=data.channels,
        img_size=img_size,
        checkpoint=checkpoint,
        small_images=model.teacher_stem == "small",
        stages=model.teacher_stages,
        **model.teacher_args,
    )
    classes = model.teacher_classes
    if classes is None and (model.teacher_pretrained or checkpoint is not None):
        # A classifier of other classes would be new, and teach noise.
        classes = classes_of_weights(name, **built)
    classes = data.num_classes if classes is None else classes
    return create_backbone(name, classes, pretrained=model.teacher_pretrained, **built)


def report_teacher_accuracy(
    config: RunConfig, data: ImageData, distiller: Distiller, device: torch.device, console: Console
) -> None:
    """Print how accurate the teachers are on some held-out images. Raises UserError, with the cause, near chance.

    A teacher whose output for the first batch is not finite is refused in any case.
    """
    if distiller.teacher is None:
        return
    student = distiller.student
    loader = sample_loader(data.val, data.num_classes, config.augment, student.spec, student.img_size, config.loader)
    plain: dict[str, Any] = dict(highlight=False, markup=False, soft_wrap=True)
    for member in distiller.teacher.members:
        name = member.spec.name
        check_finite(member.to(device), next(iter(loader))[0])
        if member.spec.num_classes != data.num_classes:
            kind = f"{member.backbone.classes_in_words()}, not those of the data"
            console.print(f"teacher {name}: its accuracy is not known ({kind})", **plain)
            continue
        reads_logits = distiller.needs.teacher.logits
        batches = Tracked(loader, console, f"teacher {name} on held-out images")
        accuracy = check_teacher(member, batches, trust=config.trust_teacher, reads_logits=reads_logits)
        console.print(f"teacher {name}: {100 * accuracy:.1f}% on held-out images", **plain)
