"""The end of a run: the student exported, the test split scored once, metrics and page written."""

import json
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from crossdistill.backbones import Backbone
from crossdistill.backbones.build import from_args
from crossdistill.backbones.checkpoint import load_weights
from crossdistill.data import ImageData
from crossdistill.data.classes import has_classes_of
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.transforms import eval_transform, preprocessing
from crossdistill.errors import UserError
from crossdistill.evaluation.accuracy import evaluate
from crossdistill.evaluation.cost import count_macs, count_parameters, images_per_second
from crossdistill.evaluation.predictions import Collected
from crossdistill.evaluation.samples import save_samples
from crossdistill.export.timm_folder import save_student
from crossdistill.files import write_whole
from crossdistill.image_size import largest, written
from crossdistill.progress import Tracked
from crossdistill.report.page import write_run_page
from crossdistill.report.records import (
    METRICS_NAME,
    SAMPLES_NAME,
    Metrics,
    ScoredModel,
    Scores,
    TrainingRecord,
)
from crossdistill.teacher import Teacher
from crossdistill.training.cached import scored_once
from crossdistill.training.checkpoints import BEFORE, BEST, CHECKPOINTS, best_problem
from crossdistill.training.embedding_scores import embedding_scores
from crossdistill.training.inputs import own_size
from crossdistill.training.models import rebuild_teacher
from crossdistill.training.run import Run


def finish_run(run: Run) -> None:
    """Export the best student, score the test split once, write the metrics and the page."""
    config, out, data = run.config, run.out, run.data
    device = run.trainer.strategy.root_device
    student = best_student(run).to(device).eval()
    save_student(student, out, _class_names(run), preprocessing(config.augment, student.spec, student.img_size))
    transform = eval_transform(config.augment, student.spec, student.img_size)
    loader = evaluation_loader(data.test, transform, config.loader.batch_size, workers=config.loader.workers)
    metrics: Metrics = {
        "role": config.role,
        "method": config.method,
        "seed": config.seed,
        "data": data.name,
        "training": _training(run),
        "student": describe(student),
    }
    if data.labelled:
        batches = Tracked(loader, run.console, f"{config.role} on the test split")
        collected = Collected()
        metrics["student"]["test"] = _scores(student, batches, data.num_classes, device, collected)
        collected.write(out)
    teacher, seen = _teacher_of(run), transform
    if teacher is not None:
        size = own_size(config.augment, teacher)
        if size is not None:
            seen = eval_transform(config.augment, student.spec, size)
            loader = evaluation_loader(data.test, seen, config.loader.batch_size, workers=config.loader.workers)
        batches = Tracked(loader, run.console, "teacher on the test split")
        score = partial(_score_teacher, teacher.to(device), batches, data, device)
        cache = run.cache
        metrics["teacher"] = score() if cache is None else scored_once(cache, data, config.augment, score)
    if run.probed is not None:
        run.console.print("scoring the embedding by nearest neighbours and a linear probe", highlight=False)
        metrics["student"] = {**metrics["student"], **embedding_scores(student, run.probed, transform, config)}
        if teacher is not None:
            metrics["teacher"] = {**metrics["teacher"], **embedding_scores(teacher, run.probed, seen, config)}
    if data.labelled:
        save_samples(out / SAMPLES_NAME, student, teacher, data, transform, seen)
    else:
        write_whole(out / SAMPLES_NAME, "[]")
    # Written after everything but the page: a folder with metrics is a finished run.
    write_whole(out / METRICS_NAME, json.dumps(metrics, indent=2))
    (out / CHECKPOINTS / BEFORE).unlink(missing_ok=True)
    write_run_page(out)


def _class_names(run: Run) -> tuple[str, ...]:
    """Return the names of the student's classes: those of the data, or without labels those of its teacher."""
    return run.data.class_names if run.data.labelled else run.distiller.student.class_names or ()


def _teacher_of(run: Run) -> Teacher | None:
    """Return the teacher of a run, built again where it was released or sharded."""
    if run.cache is None and not (run.config.engine.shard_teacher and run.trainer.world_size > 1):
        return run.distiller.teacher
    teacher = rebuild_teacher(run.config, run.distiller.needs, run.data)
    if teacher is not None and run.config.engine.channels_last is True:
        teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teacher


def _score_teacher(teacher: Teacher, batches: Iterable[Any], data: ImageData, device: torch.device) -> ScoredModel:
    """Describe the teacher, with its scores where it has the classes of the data."""
    members = [member.backbone for member in teacher.members]
    described = describe(*members)
    if not data.labelled or not has_classes_of(data, [teacher.backbone, *members]):
        return described
    return {**described, "test": _scores(teacher, batches, data.num_classes, device)}


def _scores(
    model: Backbone | Teacher,
    batches: Iterable[Any],
    num_classes: int,
    device: torch.device,
    collected: Collected | None = None,
) -> Scores:
    return cast("Scores", evaluate(model, batches, num_classes, device, collected))


def best_student(run: Run) -> Backbone:
    """Build the student once more, with the weights of the best checkpoint. Raises UserError for a damaged one."""
    best = run.out / CHECKPOINTS / BEST
    if problem := best_problem(best.parent, run.identity):
        raise UserError(f"{problem}: delete the folder {str(best.parent)!r} to train the run from its start")
    student = from_args(run.distiller.student.args)
    load_weights(student.model, best, prefix=run.module.deployed_prefix)
    return student


def _training(run: Run) -> TrainingRecord:
    method = run.distiller.method or nn.Identity()
    return {
        "seconds": run.log.seconds,
        "peak_memory": run.memory.peak,
        "epochs": run.config.epochs,
        "training_only_parameters": count_parameters(method),
        "global_batch": run.config.loader.batch_size * run.trainer.world_size * run.config.engine.accumulate,
    }


def describe(*models: Backbone) -> ScoredModel:
    """Return what one model costs, or several that are run one after the other."""
    return {
        "name": " + ".join(model.spec.name for model in models),
        "parameters": sum(count_parameters(model) for model in models),
        "macs": sum(count_macs(model) for model in models),
        "images_per_second": 1 / sum(1 / images_per_second(model) for model in models),
        "img_size": written(largest([model.img_size for model in models])),
    }
