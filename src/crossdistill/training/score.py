"""Score a model that exists."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from crossdistill.backbones import Backbone, load_backbone
from crossdistill.config import AugmentConfig, RunConfig
from crossdistill.data import ImageData, Images, load_data
from crossdistill.data.classes import match_classes
from crossdistill.data.datasets import Part
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.split_list import SplitList, read_split_list, trained_in
from crossdistill.data.transforms import eval_transform
from crossdistill.errors import UserError, unknown
from crossdistill.evaluation.accuracy import evaluate
from crossdistill.methods import NONE, choose_method
from crossdistill.training.engine import choose_device, set_threads
from crossdistill.training.inputs import decide, report_data
from crossdistill.training.models import build_student
from crossdistill.training.run_folder import read_config


def score(model: str, config: RunConfig, *, split: str, checkpoint: str | None, console: Console) -> dict[str, float]:
    """Score a finished run, or a model by name with a checkpoint, on one split of the data.

    A run is scored on the images that its own list has in that split; on other data, images that it has trained on are
    left out of the held-out splits. Raises UserError.
    """
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    set_threads(config.engine)
    if Path(model).is_dir():
        backbone, data, augment, other = _load_run(model, config)
    else:
        backbone, data, augment, other = _load_named(model, config, checkpoint)
    report_data(data, console)
    if backbone.spec.num_classes != data.num_classes:
        raise UserError(f"the model has {backbone.spec.num_classes} classes, {config.data!r} has {data.num_classes}")
    images = {"train": data.train, "val": data.val, "test": data.test}[split]
    if other is not None and split != "train":
        images = _without_trained(images, other, model, console)
    transform = eval_transform(augment, backbone.spec, backbone.img_size)
    loader = evaluation_loader(images, transform, config.loader.batch_size, workers=config.loader.workers)
    device = choose_device(config.engine)
    return evaluate(backbone.to(device).eval(), loader, data.num_classes, device)


def _load_run(model: str, config: RunConfig) -> tuple[Backbone, ImageData, AugmentConfig, SplitList | None]:
    """Return the model of a run, the data, how images are fitted, and the run's list where the data is another."""
    backbone = load_backbone(model)
    loader = replace(config.loader, in_chans=1 if backbone.spec.in_chans == 1 else 3)
    listed = read_split_list(model)
    same = Path(read_config(Path(model)).data).resolve() == Path(config.data).resolve()
    data = load_data(config.data, loader, listed if same else None)
    match_classes(backbone, model, data)
    return backbone, data, config.augment, None if same else listed


def _load_named(
    model: str, config: RunConfig, checkpoint: str | None
) -> tuple[Backbone, ImageData, AugmentConfig, SplitList | None]:
    if checkpoint is None:
        raise UserError(f"{model!r} is not the folder of a run; a model by name needs --checkpoint FILE")
    settings = replace(config.model, student_checkpoint=checkpoint)
    by_name = replace(config, student=model, model=settings, method=NONE, options={}, teacher=None)
    data = load_data(config.data, config.loader)
    decided, _ = decide(by_name, choose_method(NONE), data)
    return build_student(model, decided.model, decided.img_size, data), data, decided.augment, None


def _without_trained(images: Images, listed: SplitList, model: str, console: Console) -> Images:
    """Leave out what the run has trained on. Raises UserError where nothing is left."""
    trained = set(trained_in(images, listed))
    if not trained:
        return images
    if len(trained) == len(images):
        raise UserError(f"{model!r} has trained on all of these images; give data that it has not seen")
    text = f"crossdistill: note: {len(trained):,} of these images are left out, since {model!r} has trained on them"
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return Part(images, [number for number in range(len(images)) if number not in trained])
