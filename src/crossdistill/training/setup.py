"""Everything that is looked at before a run starts: folder, data, models, teacher."""

import json
import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from timm.optim import list_optimizers

import crossdistill
from crossdistill.backbones import Backbone, create_backbone, load_backbone
from crossdistill.backbones.build import CONFIG_FILE
from crossdistill.config import RunConfig, to_dict
from crossdistill.data import ImageData
from crossdistill.data.transforms import SMALL_IMAGE
from crossdistill.distiller import Distiller, create_distiller
from crossdistill.errors import UserError, unknown
from crossdistill.files import write_whole
from crossdistill.methods import find_method, make_options
from crossdistill.training.module import SCHEDULES

CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.json"
_SMALLEST = 32
"""Pixels a side below which images are enlarged by default."""


@dataclass(frozen=True)
class Pair:
    """The models of a run; no teachers for a method that needs none."""

    student: Backbone
    teachers: list[Backbone]


def check_names(config: RunConfig) -> None:
    """Refuse names that nothing answers to, before any data is read. Raises UserError."""
    method = find_method(config.method)
    for named, options in config.options.items():
        make_options(named, options)
    if method.uses_teacher and not config.teachers:
        raise UserError(f"method {config.method!r} needs a teacher: --teacher NAME, or --teacher-checkpoint RUN")
    if config.optim.name not in list_optimizers():
        raise unknown("optimiser", config.optim.name, list_optimizers())
    if config.optim.schedule not in SCHEDULES:
        raise unknown("schedule", config.optim.schedule, SCHEDULES)


def image_size(config: RunConfig, data: ImageData) -> int | None:
    """Choose the side the student trains at; None leaves it to the model."""
    if config.img_size is not None:
        return config.img_size
    side = max(data.size)
    return max(side, _SMALLEST) if side <= SMALL_IMAGE else None


def wants_small_stem(config: RunConfig, data: ImageData, *, pretrained: bool) -> bool:
    """Say whether a model gets the small stem."""
    if config.model.stem != "auto":
        return config.model.stem == "small"
    size = image_size(config, data)
    return size is not None and size <= SMALL_IMAGE and not pretrained


def build_pair(config: RunConfig, data: ImageData) -> Pair:
    """Build student and teacher for the data and check that they fit it and each other. Raises UserError."""
    size, model = image_size(config, data), config.model
    common: dict[str, Any] = dict(num_classes=data.num_classes, in_chans=data.channels)
    student = create_backbone(
        config.student,
        **common,
        img_size=size,
        pretrained=model.student_pretrained,
        checkpoint=model.student_checkpoint,
        small_images=wants_small_stem(config, data, pretrained=model.student_pretrained),
        stages=model.student_stages,
        **model.student_args,
    )
    if not find_method(config.method).uses_teacher:
        return Pair(student, [])
    teachers = [_build_teacher(name, checkpoint, config, data) for name, checkpoint in config.teachers]
    return Pair(student, teachers)


def build_distiller(config: RunConfig, pair: Pair) -> Distiller:
    """Build the distiller of a run. Raises UserError for options or a pair that do not fit."""
    return create_distiller(
        config.method,
        student=pair.student,
        teacher=pair.teachers,
        teacher_weights=config.teacher_weights,
        task_weight=config.optim.task_weight,
        label_smoothing=config.optim.label_smoothing,
        **config.options.get(config.method, {}),
    )


def _build_teacher(name: str | None, checkpoint: str | None, config: RunConfig, data: ImageData) -> Backbone:
    model = config.model
    if checkpoint is not None and Path(checkpoint).is_dir():
        teacher = load_backbone(checkpoint)
        built = teacher.recipe
        stored = {
            "teacher_img_size": built.get("img_size"),
            "teacher_args": built.get("model_args"),
            "teacher_stages": built.get("stages"),
        }
        for field, value in stored.items():
            given = getattr(model, field)
            if given and given != value:
                raise UserError(
                    f"model.{field} is {given!r}, but the run {checkpoint!r} was built with {value!r}; leave it out"
                )
        if name not in (None, teacher.spec.name):
            raise UserError(f"{checkpoint!r} holds a {teacher.spec.name!r}, but --teacher says {name!r}")
        check_class_order(checkpoint, data)
    else:
        if name is None:
            raise UserError(f"teacher_checkpoint {checkpoint!r} is no run's folder; name its model with --teacher")
        teacher = create_backbone(
            name,
            num_classes=data.num_classes,
            in_chans=data.channels,
            img_size=model.teacher_img_size or image_size(config, data),
            pretrained=model.teacher_pretrained,
            checkpoint=checkpoint,
            small_images=wants_small_stem(config, data, pretrained=model.teacher_pretrained),
            stages=model.teacher_stages,
            **model.teacher_args,
        )
    if teacher.spec.num_classes != data.num_classes:
        raise UserError(
            f"teacher gives {teacher.spec.num_classes} classes, {data.name!r} has {data.num_classes}: fine-tune the "
            "teacher on it first (`crossdistill teacher`)"
        )
    return teacher


def check_class_order(run: str, data: ImageData) -> None:
    """Refuse a run that knows the data's classes in another order. Raises UserError."""
    names = json.loads((Path(run) / CONFIG_FILE).read_text()).get("label_names")
    if names and sorted(names) == sorted(data.class_names) and tuple(names) != data.class_names:
        wrong = next(i for i, (a, b) in enumerate(zip(names, data.class_names, strict=True)) if a != b)
        raise UserError(
            f"the model in {run!r} knows the classes of {data.name!r} in another order: its class {wrong} is "
            f"{names[wrong]!r}, the data's is {data.class_names[wrong]!r}"
        )


@rank_zero_only
def claim_folder(config: RunConfig, out: Path, *, resume: bool) -> None:
    """Make the run's folder, or refuse one that is taken or cannot be written. Raises UserError."""
    stored = out / CONFIG_NAME
    try:
        if stored.exists() and not resume:
            raise UserError(f"{str(out)!r} already holds a run: go on with --resume, or choose another --out")
        if resume and not stored.exists():
            raise UserError(f"{str(out)!r} holds no run to resume")
        if resume:
            check_unchanged(config, out, elsewhere=True)
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {str(out)!r}: {error.strerror or error}") from error


@rank_zero_only
def write_config(config: RunConfig, out: Path, processes: int) -> None:
    """Write what the run can be started from again, and what it is made with."""
    settings = yaml.safe_dump(to_dict(replace(config, out=str(out))), sort_keys=False)
    write_whole(out / "environment.json", json.dumps({**environment(), "processes": processes}, indent=2))
    write_whole(out / CONFIG_NAME, settings)


def check_unchanged(config: RunConfig, out: Path, *, elsewhere: bool = False) -> None:
    """Refuse to go on with a run under another config (other than how it is executed). Raises UserError.

    With `elsewhere` it may go on with other devices; `check_global_batch` then sees to the batch.
    """
    stored = yaml.safe_load((out / CONFIG_NAME).read_text())
    now = yaml.safe_load(yaml.safe_dump(to_dict(config)))
    # A run of an earlier release knows fewer settings: it ran with what are the defaults now.
    before = {
        key: {**value, **stored.get(key, {})} if isinstance(value, dict) else stored.get(key, value)
        for key, value in yaml.safe_load(yaml.safe_dump(to_dict(RunConfig()))).items()
    }
    for settings in (before, now):
        settings.pop("out")
        for free in ("accelerator", "compile", "channels_last", "threads", "log_every"):
            settings["engine"].pop(free)
        settings["loader"].pop("workers")
        if elsewhere:
            settings["loader"].pop("batch_size")
            for free in ("devices", "nodes", "strategy", "shard_teacher"):
                settings["engine"].pop(free, None)
    after, earlier = _flat(now), _flat(before)
    for name in {**after, **earlier}:
        value, was = after.get(name), earlier.get(name)
        if value != was:
            raise UserError(
                f"--resume goes on with the run as it was, but {name} is now {value!r} and was {was!r}; "
                "start another --out for another config"
            )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Give sections' settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update({f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value})
    return flat


@rank_zero_only
def check_global_batch(config: RunConfig, out: Path, processes: int) -> None:
    """Refuse to resume with another batch over all processes: steps, schedule and order of images hang on it.

    Raises UserError, with the batch size that fits.
    """
    before = yaml.safe_load((out / CONFIG_NAME).read_text())["loader"]["batch_size"]
    before *= json.loads((out / "environment.json").read_text())["processes"]
    now = config.loader.batch_size * processes
    if now != before:
        fits = f"--loader.batch-size {before // processes}" if before % processes == 0 else "another number of devices"
        raise UserError(
            f"the run took {before} images a step over all processes, now it would take {now}: resume it with {fits}"
        )


@rank_zero_only
def check_space(out: Path, trained: int) -> None:
    """Refuse a folder that cannot take the run's checkpoints of `trained` parameters. Raises UserError."""
    # Weights, two optimiser moments and an average, in the best, the last and the one being written.
    needed = 3 * 4 * 4 * trained + 16 * 2**20
    free = shutil.disk_usage(out).free
    if free < needed:
        raise UserError(f"{str(out)!r} has {free / 2**20:.0f} MiB free; this run may need {needed / 2**20:.0f} MiB")


def environment() -> dict[str, Any]:
    """Say what the run is made with."""
    return {
        "crossdistill": crossdistill.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "lightning": lightning.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else (platform.processor() or "cpu"),
        "threads": torch.get_num_threads(),
    }
