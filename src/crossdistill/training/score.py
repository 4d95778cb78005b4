"""Score a trained model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from crossdistill.backbones import Backbone, load_backbone
from crossdistill.backbones.args import read_stored
from crossdistill.config import AugmentConfig, LoaderConfig, RunConfig
from crossdistill.data import ImageData, Images, load_data
from crossdistill.data.classes import has_classes_of, match_classes
from crossdistill.data.datasets import Part
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.preprocessing import read_preprocessing
from crossdistill.data.trained import TrainedOn, read_trained
from crossdistill.data.transforms import eval_transform
from crossdistill.errors import UserError, unknown
from crossdistill.evaluation.accuracy import evaluate
from crossdistill.evaluation.embedding import PENALTIES, check_probe, embed, fit_probe, knn_accuracy
from crossdistill.methods import NONE, choose_method
from crossdistill.progress import Tracked
from crossdistill.report.records import read_environment
from crossdistill.training.engine import choose_device, set_threads
from crossdistill.training.inputs import data_digests, decide, report_data
from crossdistill.training.named_model import check_has_weights, named_model
from crossdistill.training.robustness import RobustnessScorer, load_others
from crossdistill.training.run_folder import check_inputs, read_config
from crossdistill.training.weights import file_note


def score(
    model: str,
    config: RunConfig,
    console: Console,
    *,
    split: str,
    checkpoint: str | None,
    probes: Sequence[str] = (),
    corruptions: bool = False,
    ood: str | None = None,
) -> dict[str, Any]:
    """Score a finished run, or a model by name with its weights, on one split of the data.

    A run is scored on the images that its own list has in that split; on other data, images that it has trained on are
    left out of the held-out splits. `probes` are ways to score the embedding by the training split: "knn" and
    "linear_probe". With them a model may have other classes, or no classifier. With `corruptions` the result has
    "corruptions": by name, the top-1 at each severity. `ood` is a folder of images of no class of the model: "ood" is
    the area under the ROC curve, percent, by which the largest logit tells them from the scored ones. Raises UserError.
    """
    _check_split(split, probes)
    set_threads(config.engine)
    if Path(model).is_dir():
        backbone, data, augment, other = _load_run(model, config)
    else:
        backbone, data, augment, other = _load_named(model, config, checkpoint)
    report_data(data, console)
    _print_notes(model, backbone, console)
    if not data.labelled:
        raise UserError("loader.labels is 'none', so nothing can be scored; give --loader.labels classes and --data")
    if "linear_probe" in probes:
        check_probe(data.train.labels, data.val.labels, data.num_classes)
    classified = _match(backbone, model, data, optional=bool(probes) and not corruptions and ood is None)
    splits = {"train": data.train, "val": data.val, "test": data.test}
    if other is not None and split != "train":
        splits[split] = without_trained(splits[split], other, model, console)
    device = choose_device(config.engine)
    scorer = _Scorer(backbone.to(device).eval(), data, splits, split, augment, config.loader, device, console)
    scores = scorer.accuracy() if classified else {}
    if corruptions:
        scores["corruptions"] = scorer.robustness.corrupted(splits[split], data.num_classes)
    if ood is not None:
        others = load_others(ood, config, data.channels, console)
        scores["ood"] = scorer.robustness.told_apart(splits[split], others)
    return {**scores, **scorer.probes(probes)}


def _match(backbone: Backbone, model: str, data: ImageData, *, optional: bool) -> bool:
    """Put the model's classes into the data's order, and return whether they are the same.

    Raises UserError for other classes unless what is asked for can do without (`optional`).
    """
    try:
        match_classes(backbone, model, data)
        if not has_classes_of(data, [backbone]):
            raise UserError(f"the model has {backbone.spec.num_classes} classes, {data.name!r} has {data.num_classes}")
    except UserError:
        if not optional:
            raise
        return False
    return True


@dataclass
class _Scorer:
    """One model and the images of its splits; `split` is the one that is scored."""

    backbone: Backbone
    data: ImageData
    splits: Mapping[str, Images]
    split: str
    augment: AugmentConfig
    loader: LoaderConfig
    device: torch.device
    console: Console

    def accuracy(self) -> dict[str, Any]:
        return evaluate(self.backbone, self._batches_of(self.split), self.data.num_classes, self.device)

    @property
    def robustness(self) -> RobustnessScorer:
        return RobustnessScorer(
            self.backbone, self._transform, self.backbone.spec, self.loader, self.device, self.console
        )

    def probes(self, names: Sequence[str]) -> dict[str, Any]:
        """Score the embedding, with what is learned from the training split."""
        if not names:
            return {}
        train, scored = (embed(self.backbone, self._batches_of(name), self.device) for name in ("train", self.split))
        scores: dict[str, Any] = {"images": len(scored.labels)}
        if "knn" in names:
            scores["knn"] = knn_accuracy(train, scored)
        if "linear_probe" in names:
            val = embed(self.backbone, self._batches_of("val"), self.device)
            tried = Tracked(PENALTIES, self.console, "linear probe", "fit")
            scores["linear_probe"] = fit_probe(train, val, self.data.num_classes, tried).accuracy(scored)
        return scores

    @property
    def _transform(self) -> Any:
        return eval_transform(self.augment, self.backbone.spec, self.backbone.img_size)

    def _batches_of(self, split: str) -> Iterable[Any]:
        images, loader = self.splits[split], self.loader
        made = evaluation_loader(images, self._transform, loader.batch_size, workers=loader.workers)
        return Tracked(made, self.console, f"{split} split")


def _print_notes(model: str, backbone: Backbone, console: Console) -> None:
    plain: dict[str, Any] = dict(highlight=False, markup=False, soft_wrap=True)
    if backbone.note:
        console.print(f"{model}: note: {backbone.note}", **plain)
    if backbone.weights_part:
        console.print(f"{model}: the weights are those under {backbone.weights_part!r} in its checkpoint", **plain)


def _check_split(split: str, probes: Sequence[str]) -> None:
    if split not in ("train", "val", "test"):
        raise unknown("split", split, ("train", "val", "test"))
    if probes and split == "train":
        raise UserError("--knn and --linear-probe learn from the training split, so they cannot score it")
    if "linear_probe" in probes and split == "val":
        raise UserError("--linear-probe chooses its regularisation on the validation split, so it cannot score it")


def _load_run(model: str, config: RunConfig) -> tuple[Backbone, ImageData, AugmentConfig, TrainedOn | None]:
    """Return the model of a run, the data, how images are fitted, and for other data what the run has trained on."""
    backbone = load_backbone(model, trust_code=config.trust_code)
    # What `predict` and others would use: a run that they refuse is not scored as if it were whole.
    read_preprocessing(read_stored(model), f"{model!r}: its preprocessing cannot be read: ")
    data, other = data_of_run(model, config, backbone.spec.in_chans)
    return backbone, data, config.augment, other


def data_of_run(run: str, config: RunConfig, in_chans: int) -> tuple[ImageData, TrainedOn | None]:
    """Return the data of the settings, divided as the run has divided it, and for other data what it has trained on.

    Raises UserError.
    """
    known = read_trained(run)
    listed = known.listed
    stored = read_config(Path(run))
    # The list of a run without labels does not say which class a file has.
    same_labels = stored.loader.labels == config.loader.labels
    same = same_labels and Path(stored.data).resolve() == Path(config.data).resolve()
    loader = replace(config.loader, in_chans=1 if in_chans == 1 else 3, unlabelled=None)
    data = load_data(config.data, loader, listed if same else None)
    if same and listed is None:
        # Without a list of files nothing else tells which images the run has trained on.
        check_inputs(Path(run), {**read_environment(Path(run)).inputs, **data_digests(data)})
    return data, None if same else known


def _load_named(
    model: str, config: RunConfig, checkpoint: str | None
) -> tuple[Backbone, ImageData, AugmentConfig, TrainedOn | None]:
    check_has_weights(model, checkpoint, config.model)
    loaded = replace(config.model, student_checkpoint=checkpoint)
    # As a teacher, pretrained weights have their own input size.
    by_name = replace(config, role="teacher", student=model, method=NONE, options={}, teacher=None, model=loaded)
    data = load_data(config.data, config.loader)
    decided, _ = decide(by_name, choose_method(NONE), data)
    small = decided.model.stem == "small"
    backbone = named_model(model, checkpoint, decided.model, decided.img_size, data.channels, small=small)
    built_as = file_note(checkpoint, decided.model.stem, backbone.img_size)
    backbone.note = "; ".join(note for note in (backbone.note, built_as) if note)
    return backbone, data, decided.augment, None


def without_trained(images: Images, known: TrainedOn, model: str, console: Console) -> Images:
    """Leave out what the run has trained on. Raises UserError where nothing is left."""
    plain: dict[str, Any] = dict(highlight=False, markup=False, soft_wrap=True)
    if known.marks is None and known.listed is None:
        console.print(f"crossdistill: note: it is not known which of these images {model!r} has trained on", **plain)
    elif not known.by_content:
        text = f"the images of {model!r} are known by path and size alone, or in part, so copies are not noticed"
        console.print(f"crossdistill: note: {text}", **plain)
    trained = set(known.find(images))
    if not trained:
        return images
    if len(trained) == len(images):
        raise UserError(f"{model!r} has trained on all of these images; give data that it has not seen")
    text = f"crossdistill: note: {len(trained):,} of these images are left out, since {model!r} has trained on them"
    console.print(text, **plain)
    return Part(images, [number for number in range(len(images)) if number not in trained])
