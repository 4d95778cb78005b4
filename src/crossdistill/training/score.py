"""Score a trained model."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from crossdistill.backbones import Backbone, load_backbone
from crossdistill.backbones.args import read_class_names
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.data.classes import check_class_order
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.transforms import eval_transform
from crossdistill.errors import UserError, unknown
from crossdistill.evaluation.accuracy import evaluate
from crossdistill.methods import NONE, choose_method
from crossdistill.progress import Tracked
from crossdistill.training.engine import choose_device, set_threads
from crossdistill.training.inputs import decide
from crossdistill.training.models import build_student


def score(model: str, config: RunConfig, console: Console, *, split: str, checkpoint: str | None) -> dict[str, float]:
    """Score a finished run, or a model by name with a checkpoint, on one split of the data. Raises UserError."""
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    backbone, data = _load(model, config, checkpoint)
    if backbone.spec.num_classes != data.num_classes:
        raise UserError(f"the model has {backbone.spec.num_classes} classes, {config.data!r} has {data.num_classes}")
    images = {"train": data.train, "val": data.val, "test": data.test}[split]
    transform = eval_transform(config.augment, backbone.spec, backbone.img_size)
    loader = evaluation_loader(images, transform, config.loader.batch_size, workers=config.loader.workers)
    device = choose_device(config.engine)
    batches = Tracked(loader, console, f"{split} split")
    return evaluate(backbone.to(device).eval(), batches, data.num_classes, device)


def _load(model: str, config: RunConfig, checkpoint: str | None) -> tuple[Backbone, ImageData]:
    set_threads(config.engine)
    if Path(model).is_dir():
        backbone = load_backbone(model)
        data = load_data(config.data, replace(config.loader, in_chans=1 if backbone.spec.in_chans == 1 else 3))
        check_class_order(read_class_names(model), model, data)
        return backbone, data
    if checkpoint is None:
        raise UserError(f"{model!r} is not the folder of a run; a model by name needs --checkpoint FILE")
    settings = replace(config.model, student_checkpoint=checkpoint)
    by_name = replace(config, student=model, model=settings, method=NONE, options={}, teacher=None)
    data = load_data(config.data, config.loader)
    decided, _ = decide(by_name, choose_method(NONE), data)
    return build_student(model, decided.model, decided.img_size, data), data
