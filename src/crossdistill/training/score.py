"""Scoring a model that is already there."""

from dataclasses import replace
from pathlib import Path

import torch

from crossdistill.backbones import create_backbone, load_backbone
from crossdistill.config import RunConfig
from crossdistill.data import load_data
from crossdistill.data.loaders import make_loader
from crossdistill.data.transforms import eval_transform
from crossdistill.errors import UserError, unknown
from crossdistill.evaluation.accuracy import evaluate
from crossdistill.training.setup import check_class_order, image_size, wants_small_stem


def score(model: str, config: RunConfig, *, split: str, checkpoint: str | None) -> dict[str, float]:
    """Score a finished run, or a model by name with a checkpoint, on one split of the config's data.

    Raises UserError.
    """
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    if Path(model).is_dir():
        backbone = load_backbone(model)
        images = load_data(config.data, replace(config.loader, in_chans=backbone.spec.in_chans))
        check_class_order(model, images)
    else:
        if checkpoint is None:
            raise UserError(f"{model!r} is no folder of a run; a model by name needs --checkpoint FILE")
        images = load_data(config.data, config.loader)
        backbone = create_backbone(
            model,
            images.num_classes,
            image_size(config, images),
            images.channels,
            checkpoint=checkpoint,
            small_images=wants_small_stem(config, images, pretrained=False),
            **config.model.student_args,
        )
    if backbone.spec.num_classes != images.num_classes:
        raise UserError(
            f"the model gives {backbone.spec.num_classes} classes, {config.data!r} has {images.num_classes}"
        )
    part = {"train": images.train, "val": images.val, "test": images.test}[split]
    transform = eval_transform(config.augment, backbone.spec, backbone.img_size)
    loader = make_loader(part, transform, config.loader.batch_size, workers=config.loader.workers)
    device = "cuda" if torch.cuda.is_available() and config.engine.accelerator != "cpu" else "cpu"
    return evaluate(backbone.to(device).eval(), loader, images.num_classes, device)
