"""Checks of settings that need neither data nor models."""

from collections.abc import Sequence

from timm.optim import get_optimizer_info, list_optimizers

from crossdistill.backbones.sources import check_known
from crossdistill.config import RunConfig
from crossdistill.config.code import is_transformers
from crossdistill.errors import UserError, unknown
from crossdistill.methods import (
    METHODS,
    Method,
    MethodChoice,
    check_option_keys,
    choose_method,
    methods_without_labels,
    options_for,
)


def check_settings(config: RunConfig, methods: Sequence[str] = ()) -> MethodChoice:
    """Return the run's method. Raises UserError for errors that can be found before any data is read.

    `methods` names further methods whose options the settings may hold.
    """
    if config.role == "student" and is_transformers(config.student):
        raise UserError(
            f"student {config.student!r} is a transformers model, which can only teach: the student is a model of timm "
            "or torchvision, or your own (package.module:factory)"
        )
    pretrained = config.model.student_pretrained or is_transformers(config.student)
    if config.model.new_head and config.model.student_checkpoint is None and not pretrained:
        flag = "--model.student-checkpoint" if config.role == "student" else "--teacher-checkpoint"
        raise UserError(f"model.new_head keeps the other weights of a checkpoint, but there is none: give {flag}")
    for name in (config.student, *(name for name, _ in config.teachers if name is not None)):
        check_known(name)
    choice = choose_method(config.method, options_for(config.method, config.options))
    others = check_option_keys(config.options, [config.method, *methods])
    for key, options in config.options.items():
        if key not in choice.plain and key not in others and key in METHODS:
            choose_method(key, options)
    for part in choice.parts:
        if part.method.forward is Method.forward:
            raise UserError(f"method {part.name!r} has no forward(student, teacher, targets)")
    if config.loader.labels == "none":
        _check_without_labels(config, choice)
    elif config.probe_data is not None:
        raise UserError("probe_data is for runs without labels (loader.labels none); the labels choose the best epoch")
    if config.loader.unlabelled is not None:
        _check_partly(config, choice)
    if choice.needs.index and config.augment.mixes:
        raise UserError(f"method {config.method!r} stores images by number, so they cannot be mixed: turn mixup off")
    if choice.needs.teacher and not config.teachers:
        raise UserError(f"method {config.method!r} needs a teacher: --teacher NAME, or --teacher-checkpoint RUN")
    if choice.needs.teacher and config.teacher_weights is not None and len(config.teachers) < 2:
        raise UserError(f"teacher_weights {config.teacher_weights!r} mix several teachers, but there is one")
    _check_optimiser(config.optim.name)
    return choice


def _check_without_labels(config: RunConfig, choice: MethodChoice) -> None:
    if not choice.parts or choice.needs.labels:
        raise UserError(
            f"method {config.method!r} learns from labels, but loader.labels is 'none': use a method that reads none "
            f"({', '.join(methods_without_labels())})"
        )
    if config.probe_every is not None and config.probe_data is None:
        raise UserError("probe_every needs labelled images: give --probe-data")
    given = {
        "optim.ema": config.optim.ema,
        "mixup and CutMix": config.augment.mixes,
        "a number for optim.balance": config.optim.balance not in (None, "auto"),
    }
    for name, is_given in given.items():
        if is_given:
            raise UserError(f"{name} cannot be used with loader.labels 'none'; leave it out")


def _check_partly(config: RunConfig, choice: MethodChoice) -> None:
    """Raise UserError for what cannot be trained on images of which some have no labels."""
    if config.loader.labels == "none":
        raise UserError("loader.unlabelled is for runs with labels; with loader.labels 'none' put all images in --data")
    if choice.needs.labels:
        raise UserError(
            f"method {config.method!r} learns from the label of every image, but loader.unlabelled has none: use a "
            f"method that reads none ({', '.join(methods_without_labels())})"
        )
    if config.augment.mixes:
        raise UserError("mixup and CutMix cannot be used with loader.unlabelled; leave one of the two out")


def _check_optimiser(name: str) -> None:
    if name not in list_optimizers():
        raise unknown("optimiser", name, list_optimizers())
    if get_optimizer_info(name).second_order:
        raise UserError(f"optim.name {name!r} needs second-order gradients, which a training step does not compute")
