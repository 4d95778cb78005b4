"""The end of a run: the student exported, the test split scored once, metrics and page written."""

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from crossdistill.backbones import Backbone
from crossdistill.backbones.build import from_args
from crossdistill.backbones.checkpoint import load_weights
from crossdistill.data.classes import has_classes_of
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.transforms import eval_transform, preprocessing
from crossdistill.evaluation.accuracy import evaluate
from crossdistill.evaluation.cost import count_macs, count_parameters, images_per_second
from crossdistill.evaluation.samples import save_samples
from crossdistill.export.timm_folder import save_student
from crossdistill.files import write_whole
from crossdistill.report.page import write_run_page
from crossdistill.training.cached import judged_once
from crossdistill.training.models import rebuild_teacher
from crossdistill.training.run_folder import BEST, CHECKPOINTS, METRICS_NAME

if TYPE_CHECKING:
    from crossdistill.training.fit import Run


def finish_run(run: "Run") -> None:
    """Export the best student, score the test split once, write the metrics and the page."""
    config, out, data = run.config, run.out, run.data
    device = run.trainer.strategy.root_device
    student = best_student(run).to(device).eval()
    teacher = run.distiller.teacher
    if run.cache is not None or (config.engine.shard_teacher and run.trainer.world_size > 1):
        teacher = rebuild_teacher(config, data)
        if teacher is not None and config.engine.channels_last is True:
            teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_student(student, out, data.class_names, preprocessing(config.augment, student.spec, student.img_size))
    transform = eval_transform(config.augment, student.spec, student.img_size)
    loader = evaluation_loader(data.test, transform, config.loader.batch_size, workers=config.loader.workers)
    metrics: dict[str, Any] = {
        "role": config.role,
        "method": config.method,
        "seed": config.seed,
        "data": data.name,
        "training": _training(run),
        "student": {**describe(student), "test": evaluate(student, loader, data.num_classes, device)},
    }
    if teacher is not None:
        frozen = teacher.to(device)

        def judge() -> dict[str, Any]:
            described = describe(*(member.backbone for member in frozen.members))
            if not has_classes_of(data, [frozen.backbone, *(member.backbone for member in frozen.members)]):
                return described
            return {**described, "test": evaluate(frozen, loader, data.num_classes, device)}

        metrics["teacher"] = judge() if run.cache is None else judged_once(run.cache, data, config.augment, judge)
    save_samples(out, student, teacher, data, transform)
    # Written last but for the page: a folder with metrics is a finished run.
    write_whole(out / METRICS_NAME, json.dumps(metrics, indent=2))
    write_run_page(out)


def best_student(run: "Run") -> Backbone:
    """Build the student once more, with the weights of the best checkpoint."""
    student = from_args(run.distiller.student.args)
    load_weights(student.model, run.out / CHECKPOINTS / BEST, prefix=run.module.deployed_prefix)
    return student


def _training(run: "Run") -> dict[str, Any]:
    method = run.distiller.method or nn.Identity()
    return {
        "seconds": run.log.seconds,
        "epochs": run.config.epochs,
        "training_only_parameters": count_parameters(method),
        "global_batch": run.config.loader.batch_size * run.trainer.world_size * run.config.engine.accumulate,
    }


def describe(*models: Backbone) -> dict[str, Any]:
    """Return what one model costs, or several that are run one after the other."""
    return {
        "name": " + ".join(model.spec.name for model in models),
        "parameters": sum(count_parameters(model) for model in models),
        "macs": sum(count_macs(model) for model in models),
        "images_per_second": 1 / sum(1 / images_per_second(model) for model in models),
        "img_size": max(model.img_size for model in models),
    }
