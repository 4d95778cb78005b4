"""Score a trained model."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from crossdistill.backbones import Backbone, create_backbone, load_backbone
from crossdistill.backbones.args import read_class_names
from crossdistill.backbones.build import classes_of_weights
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.data.classes import check_class_order
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.transforms import eval_transform
from crossdistill.errors import UserError, unknown
from crossdistill.evaluation.accuracy import evaluate
from crossdistill.evaluation.embedding import embed, fit_probe, knn_accuracy
from crossdistill.methods import NONE, choose_method
from crossdistill.progress import Tracked
from crossdistill.training.engine import choose_device, set_threads
from crossdistill.training.inputs import decide


def score(
    model: str,
    config: RunConfig,
    console: Console,
    *,
    split: str,
    checkpoint: str | None,
    probes: Sequence[str] = (),
) -> dict[str, float]:
    """Score a finished run, or a model by name with a checkpoint, on one split of the data.

    `probes` are ways to score the embedding by the training split: "knn" and "linear_probe". With them a model may have
    other classes, or no classifier. Raises UserError.
    """
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    if probes and split == "train":
        raise UserError("--knn and --linear-probe learn from the training split, so they cannot score it")
    if "linear_probe" in probes and split == "val":
        raise UserError("--linear-probe chooses its regularisation on the validation split, so it cannot score it")
    backbone, data = _load(model, config, checkpoint)
    classified = backbone.spec.num_classes == data.num_classes
    if not classified and not probes:
        raise UserError(f"the model has {backbone.spec.num_classes} classes, {config.data!r} has {data.num_classes}")
    transform = eval_transform(config.augment, backbone.spec, backbone.img_size)
    device = choose_device(config.engine)
    backbone.to(device).eval()

    def loader(name: str) -> Iterable[Any]:
        images = {"train": data.train, "val": data.val, "test": data.test}[name]
        batches = evaluation_loader(images, transform, config.loader.batch_size, workers=config.loader.workers)
        return Tracked(batches, console, f"{name} split")

    scores: dict[str, float] = {}
    if classified:
        scores = evaluate(backbone, loader(split), data.num_classes, device)
    if probes:
        train, scored = (embed(backbone, loader(name), device) for name in ("train", split))
        scores["images"] = len(scored.labels)
        if "knn" in probes:
            scores["knn"] = knn_accuracy(train, scored)
        if "linear_probe" in probes:
            probe = fit_probe(train, embed(backbone, loader("val"), device), data.num_classes)
            scores["linear_probe"] = probe.accuracy(scored)
    return scores


def _load(model: str, config: RunConfig, checkpoint: str | None) -> tuple[Backbone, ImageData]:
    set_threads(config.engine)
    if Path(model).is_dir():
        backbone = load_backbone(model, trust_code=config.trust_code)
        data = load_data(config.data, replace(config.loader, in_chans=1 if backbone.spec.in_chans == 1 else 3))
        check_class_order(read_class_names(model), model, data)
        return backbone, data
    if checkpoint is None:
        raise UserError(f"{model!r} is not the folder of a run; a model by name needs --checkpoint FILE")
    by_name = replace(config, student=model, method=NONE, options={}, teacher=None)
    data = load_data(config.data, config.loader)
    decided, _ = decide(by_name, choose_method(NONE), data)
    built: dict[str, Any] = dict(
        img_size=decided.img_size,
        in_chans=data.channels,
        checkpoint=checkpoint,
        small_images=decided.model.stem == "small",
        **decided.model.student_args,
    )
    return create_backbone(model, classes_of_weights(model, **built) or 0, **built), data
