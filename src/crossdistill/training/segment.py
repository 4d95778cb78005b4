"""Score a finished run, or a model by name with its weights, by a segmentation from its frozen stage maps."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from crossdistill.backbones import Backbone, load_backbone
from crossdistill.config import RunConfig
from crossdistill.data.masks import load_masked
from crossdistill.data.transforms import eval_transform
from crossdistill.evaluation.segmentation import Segmentation, segment
from crossdistill.training.engine import choose_device, set_threads
from crossdistill.training.named_model import check_has_weights, named_model
from crossdistill.training.weights import has_small_stem


def segmentation_score(
    model: str, config: RunConfig, console: Console, *, folder: str, stage: int, checkpoint: str | None
) -> Segmentation:
    """Fit and score a linear classifier on a stage map of a model, on a folder of images and masks. Raises UserError.

    Images are squashed to the network's input, so that every pixel of a mask is scored.
    """
    set_threads(config.engine)
    train, test = load_masked(folder)
    backbone = _load(model, config, checkpoint)
    backbone.require_stages()
    text = f"segmentation: {len(train):,} training and {len(test):,} test images with masks"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    whole = replace(config.augment, crop_mode="squash", crop_pct=1.0)
    transform = eval_transform(whole, backbone.spec, backbone.img_size)
    return segment(backbone, train, test, transform, console, stage=stage, device=choose_device(config.engine))


def _load(model: str, config: RunConfig, checkpoint: str | None) -> Backbone:
    if Path(model).is_dir():
        return load_backbone(model, trust_code=config.trust_code)
    check_has_weights(model, checkpoint, config.model)
    stem = config.model.stem
    small = stem == "small" or (stem == "auto" and checkpoint is not None and has_small_stem(checkpoint))
    return named_model(model, checkpoint, config.model, config.img_size, 3, small=small)
