"""One run from config to finished folder."""

import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from timm.layers import convert_sync_batchnorm

from crossdistill.backbones import Backbone, create_backbone
from crossdistill.backbones.checkpoint import load_weights, read_weights
from crossdistill.cache import TeacherCache
from crossdistill.config import RunConfig, override
from crossdistill.data import ImageData, load_data
from crossdistill.data.loaders import make_loader
from crossdistill.errors import UserError
from crossdistill.evaluation.accuracy import evaluate
from crossdistill.evaluation.cost import count_macs, count_parameters, images_per_second
from crossdistill.evaluation.samples import save_samples
from crossdistill.export.timm_folder import save_student
from crossdistill.files import write_whole
from crossdistill.report.page import write_run_page
from crossdistill.teacher import Teacher, TeacherGroup, make_teacher
from crossdistill.training.cached import judged_once, look_at_teachers, prepare_cache
from crossdistill.training.callbacks import LAST
from crossdistill.training.datamodule import DataModule
from crossdistill.training.engine import make_trainer
from crossdistill.training.module import DistillModule
from crossdistill.training.setup import (
    METRICS_NAME,
    Pair,
    build_distiller,
    build_pair,
    check_global_batch,
    check_names,
    check_space,
    claim_folder,
    write_config,
)


def default_out(config: RunConfig) -> Path:
    """Name a run's folder by what it is."""
    teacher = "+".join(name or Path(checkpoint or "").name for name, checkpoint in config.teachers)
    data = Path(config.data).name if Path(config.data).exists() else config.data
    parts = [data, teacher, config.student, config.method, f"s{config.seed}"]
    return Path("runs") / "-".join(p.replace("/", "_").replace(":", "_") for p in parts if p)


def teacher_config(config: RunConfig) -> RunConfig:
    """Turn a recipe for a student into the run that trains its teacher: plain training of the teacher's model.

    `teacher_training` says what differs, by dotted name or nested. Raises UserError for no teacher.
    """
    if config.teacher is None:
        raise UserError("no teacher is named: --teacher NAME")
    if not isinstance(config.teacher, str):
        raise UserError("several teachers are trained one after the other; name one of them: --teacher NAME")
    if isinstance(config.teacher_checkpoint, list):
        raise UserError("a teacher starts from one checkpoint; several are given")
    model = replace(
        config.model,
        student_args=config.model.teacher_args,
        student_stages=config.model.teacher_stages,
        student_pretrained=config.model.teacher_pretrained,
        student_checkpoint=config.teacher_checkpoint,
        teacher_args={},
        teacher_stages=None,
        teacher_pretrained=False,
    )
    plain = replace(
        config,
        student=config.teacher,
        img_size=config.model.teacher_img_size or config.img_size,
        teacher=None,
        teacher_checkpoint=None,
        cache=None,
        method="none",
        options={},
        teacher_training={},
        model=model,
        optim=replace(config.optim, task_weight=1.0),
    )
    return override(plain, config.teacher_training, "teacher_training")


def fit(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> Path:
    """Train a student as the config says and leave a finished run in its folder, which is given back.

    Everything that can be refused is refused before the first step. Raises UserError for bad input,
    `Interrupted` after a signal (with a checkpoint to `resume` from).
    """
    console = console or Console(stderr=True)
    check_names(config)
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    out = Path(config.out) if config.out else default_out(config)
    claim_folder(config, out, resume=resume)
    trainer, log = make_trainer(config, out, console, f"{config.method} s{config.seed}")
    last = out / "checkpoints" / LAST
    going_on = resume and last.exists()
    if going_on:
        check_global_batch(config, out, trainer.world_size)
        read_weights(last)
    data = load_data(config.data, config.loader)
    torch.manual_seed(config.seed)
    pair = build_pair(config, data)
    student = pair.student
    if config.engine.sync_batchnorm:
        # Not Lightning's flag: torch's converter drops the activation inside timm's norm layers.
        student.model = convert_sync_batchnorm(student.model)
    distiller = build_distiller(config, pair)
    trained = count_parameters(distiller)
    check_space(out, trained)
    say = rank_zero_only(console.print)
    if config.loader.batch_size > len(data.train):
        say(f"note: a batch of {config.loader.batch_size} is more than the {len(data.train)} training images")
    say(
        f"[bold]{config.method}[/]: {student.spec.name} ({count_parameters(student) / 1e6:.2f} M) on {data.name}, "
        f"{len(data.train)} images at {student.img_size} px, {len(data.val)} held out, {len(data.test)} for the test",
        highlight=False,
        soft_wrap=True,
    )
    if min(len(data.val), len(data.test)) < trainer.world_size:
        raise UserError(f"{len(data.val)} held-out images are fewer than the {trainer.world_size} processes")
    if (config.augment.mixup or config.augment.cutmix) and min(len(data.train), config.loader.batch_size) % 2:
        raise UserError(f"mixup and CutMix pair the images of a batch; the one batch of {len(data.train)} is odd")
    module = DistillModule(distiller, config)
    datamodule = DataModule(data, config, student.spec, student.img_size)
    device = trainer.strategy.root_device
    if trainer.is_global_zero:
        look_at_teachers(config, distiller, data, datamodule, device, console)
    write_config(config, out, trainer.world_size)
    if config.cached and distiller.teacher is not None:
        datamodule.stored = module.stored = prepare_cache(config, distiller, datamodule, device, console)
        distiller.release_teacher()
        pair = Pair(student, [])
        gc.collect()
    if config.engine.channels_last:
        distiller.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.engine.compile:
        distiller.compile()
    trainer.fit(module, datamodule, ckpt_path=last if going_on else None, weights_only=True)
    if trainer.is_global_zero:
        best = out / "checkpoints" / "best.ckpt"
        kept = create_backbone(**student.recipe.get("model_args", {}), **_without_args(student.recipe))
        load_weights(kept.model, best)
        training = {
            "seconds": log.seconds,
            "epochs": config.epochs,
            "training_only_parameters": trained - count_parameters(student),
            "global_batch": config.loader.batch_size * trainer.world_size * config.engine.accumulate,
        }
        teacher = distiller.teacher
        if module.stored is not None or (config.engine.shard_teacher and trainer.world_size > 1):
            # Only now is the whole teacher wanted again; one without weights of its own comes from the seed.
            torch.manual_seed(config.seed)
            teacher = make_teacher(build_pair(config, data).teachers, student.spec, config.teacher_weights)
        _finish(config, out, kept.to(device).eval(), teacher, data, datamodule, module.stored, training)
    return out


def _without_args(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "model_args"}


def _finish(
    config: RunConfig,
    out: Path,
    student: Backbone,
    teacher: Teacher | TeacherGroup | None,
    data: ImageData,
    datamodule: DataModule,
    stored: TeacherCache | None,
    training: dict[str, Any],
) -> None:
    """Export the student, look at the test split once, write the metrics and the page."""
    save_student(student, out, data.class_names)
    device = next(student.parameters()).device
    loader = make_loader(data.test, datamodule.eval_transform, config.loader.batch_size, workers=config.loader.workers)
    metrics: dict[str, Any] = {
        "method": config.method,
        "seed": config.seed,
        "data": data.name,
        "training": training,
        "student": {**_describe(student), "test": evaluate(student, loader, data.num_classes, device)},
    }
    if teacher is not None:
        frozen = teacher.to(device)

        def judged() -> dict[str, Any]:
            members = _describe(*(member.backbone for member in frozen.members))
            return {**members, "test": evaluate(frozen, loader, data.num_classes, device)}

        metrics["teacher"] = judged() if stored is None else judged_once(stored, config, data, judged)
    save_samples(out, student, teacher, data, datamodule.eval_transform)
    # Written last but for the page: a folder with metrics is a finished run.
    write_whole(out / METRICS_NAME, json.dumps(metrics, indent=2))
    write_run_page(out)


def _describe(*models: Backbone) -> dict[str, Any]:
    """Say what one model costs, or several that are run one after the other."""
    return {
        "name": " + ".join(model.spec.name for model in models),
        "parameters": sum(count_parameters(model) for model in models),
        "macs": sum(count_macs(model) for model in models),
        "images_per_second": 1 / sum(1 / images_per_second(model) for model in models),
        "img_size": max(model.img_size for model in models),
    }
