"""`crossdistill teacher --probe`: a linear classifier on the frozen embeddings of a model, as a teacher's run."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from crossdistill.backbones import Backbone
from crossdistill.backbones.classifier import classifier_names
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.data.loaders import Views, evaluation_loader, unchanged
from crossdistill.data.transforms import eval_transform, preprocessing
from crossdistill.errors import UserError
from crossdistill.evaluation.accuracy import evaluate
from crossdistill.evaluation.embedding import PENALTIES, Embedded, LinearProbe, check_probe, embed, fit_probe
from crossdistill.evaluation.samples import save_samples
from crossdistill.export.timm_folder import save_student
from crossdistill.files import write_whole
from crossdistill.methods import NONE, choose_method
from crossdistill.progress import Tracked
from crossdistill.report.page import write_run_page
from crossdistill.report.records import METRICS_NAME, SAMPLES_NAME
from crossdistill.training.engine import choose_device, set_threads
from crossdistill.training.finish import describe
from crossdistill.training.inputs import check_decoding, decide, digests, make_views, report_data
from crossdistill.training.models import build_student
from crossdistill.training.run_folder import check_folder, default_out, start_folder
from crossdistill.training.weights import has_weights, random_weights_error, student_weights_note


def probe_teacher(config: RunConfig, console: Console) -> Path:
    """Fit a classifier on frozen embeddings and write the model as a finished run; returns its folder.

    `config` is that of a teacher's run. The classifier sees the training images as evaluation does, and in as many
    augmented views as loader.views asks for. Raises UserError for bad input.
    """
    out = Path(config.out) if config.out else default_out(config)
    check_folder(out, resume=False)
    set_threads(config.engine)
    model = config.model
    if not (
        has_weights(config.student, model.student_checkpoint, pretrained=model.student_pretrained)
        or config.trust_teacher
    ):
        raise random_weights_error(config.student)
    data = load_data(config.data, config.loader)
    report_data(data, console)
    check_probe(data.train.labels, data.val.labels, data.num_classes)
    views = config.loader.views or 0
    config, _ = decide(replace(config, model=replace(config.model, new_head=True)), choose_method(NONE), data)
    assert config.img_size is not None
    check_decoding(config, data)
    torch.manual_seed(config.seed)
    backbone = build_student(config.student, config.model, config.img_size, data)
    if not backbone.classifies_embedding:
        raise UserError(
            f"the logits of {config.student!r} are not computed from its embedding; train it without --probe"
        )
    if note := student_weights_note(config):
        console.print(f"note: {config.student}: {note}", highlight=False, markup=False, soft_wrap=True)
    # Found before the work starts.
    _classifier(backbone, data)
    device = choose_device(config.engine)
    start = time.perf_counter()
    probe = _fit(config, data, backbone.to(device).eval(), views, device, console)
    _set_classifier(backbone, probe, data)
    seconds = time.perf_counter() - start
    start_folder(config, digests(config, data), out, 1, resume=False, data=data)
    _finish(config, data, backbone, device, seconds, out, console)
    return out


def _fit(
    config: RunConfig, data: ImageData, backbone: Backbone, views: int, device: torch.device, console: Console
) -> LinearProbe:
    transform = eval_transform(config.augment, backbone.spec, backbone.img_size)
    splits: list[Embedded] = []
    for name, split in (("train", data.train), ("val", data.val)):
        loader = evaluation_loader(split, transform, config.loader.batch_size, workers=config.loader.workers)
        splits.append(embed(backbone, Tracked(loader, console, f"{name} split"), device))
    train, val = splits
    for augmented in _views(config, data, backbone, views, device, console):
        train += embed(backbone, augmented, device)
    probe = fit_probe(
        train, val, data.num_classes, Tracked(PENALTIES, console, "linear probe", "fit"), choose_by="loss"
    )
    console.print(
        f"probe: {len(train.labels)} embeddings of {train.features.shape[1]} dimensions, C {probe.penalty:g}, "
        f"{probe.accuracy(val):.2f}% and a cross entropy of {probe.loss(val):.2f} nats on the validation split",
        highlight=False,
        soft_wrap=True,
    )
    return probe


def _views(
    config: RunConfig, data: ImageData, backbone: Backbone, views: int, device: torch.device, console: Console
) -> Iterator[Iterable[Any]]:
    """Yield batches of all training images, for one augmented view after the other."""
    if not views:
        return
    made, _ = make_views(config.loader, config.augment, config.seed, data, backbone, device)
    workers = config.loader.workers if isinstance(made, Views) else 0
    for view in range(views):
        keys = [(index, view) for index in range(len(data.train))]
        batches: DataLoader[Any] = DataLoader(
            made, config.loader.batch_size, sampler=keys, num_workers=workers, collate_fn=unchanged
        )
        yield Tracked(batches, console, f"view {view + 1} of {views}")


def _classifier(backbone: Backbone, data: ImageData) -> nn.Linear | nn.Conv2d:
    """Return the layer that the probe replaces. Raises UserError for a classifier of several layers."""
    (name,) = classifier_names(backbone.model, backbone.spec.name, data.num_classes, data.channels, backbone.img_size)
    layer = backbone.model.get_submodule(name)
    if not isinstance(layer, nn.Linear | nn.Conv2d) or layer.bias is None:
        raise UserError(
            f"the classifier of {backbone.spec.name!r} is not a linear layer with a bias: train it without --probe"
        )
    return layer


def _set_classifier(backbone: Backbone, probe: LinearProbe, data: ImageData) -> None:
    layer = _classifier(backbone, data)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(probe.weight).view_as(layer.weight))
        layer.bias.copy_(torch.from_numpy(probe.bias))


def _finish(
    config: RunConfig,
    data: ImageData,
    backbone: Backbone,
    device: torch.device,
    seconds: float,
    out: Path,
    console: Console,
) -> None:
    look = preprocessing(config.augment, backbone.spec, backbone.img_size)
    save_student(backbone, out, data.class_names, look)
    transform = eval_transform(config.augment, backbone.spec, backbone.img_size)
    loader = evaluation_loader(data.test, transform, config.loader.batch_size, workers=config.loader.workers)
    batches = Tracked(loader, console, "teacher on the test split")
    training: dict[str, Any] = {"seconds": seconds, "epochs": 0, "training_only_parameters": 0, "global_batch": 0}
    metrics = {
        "role": config.role,
        "method": config.method,
        "seed": config.seed,
        "data": data.name,
        "training": training,
        "student": {**describe(backbone), "test": evaluate(backbone, batches, data.num_classes, device)},
    }
    save_samples(out / SAMPLES_NAME, backbone, None, data, transform)
    write_whole(out / METRICS_NAME, json.dumps(metrics, indent=2))
    write_run_page(out)
