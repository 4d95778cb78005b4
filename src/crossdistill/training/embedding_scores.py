"""What the embedding knows, by nearest neighbours and a linear probe, while the student trains and at the end."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as L

from crossdistill.backbones import Backbone
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, Images, load_data
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.mixed import labelled_part
from crossdistill.data.transforms import eval_transform
from crossdistill.errors import UserError
from crossdistill.evaluation.embedding import Embedded, check_probe, embed, fit_probe, knn_accuracy
from crossdistill.report.records import EmbeddingScores
from crossdistill.tasks import KNN, LINEAR_PROBE
from crossdistill.teacher import Teacher
from crossdistill.training.callbacks import every_and_last
from crossdistill.training.module import DistillModule

_WORDS = {KNN: "knn", LINEAR_PROBE: "linear probe"}


def read_probe_data(config: RunConfig, data: ImageData) -> ImageData | None:
    """Return the labelled images that score the embedding: probe_data, or those of the run; None where none do.

    Raises UserError for data without labels, and for a linear probe of images that none can be fitted to.
    """
    found = _read_probe_data(config, data)
    if found is not None and config.probe_linear:
        try:
            check_probe(found.train.labels, found.val.labels, found.num_classes)
        except UserError as error:
            raise UserError(f"probe_linear: {error}") from error
    return found


def _read_probe_data(config: RunConfig, data: ImageData) -> ImageData | None:
    if config.probe_data is None:
        return replace(data, train=labelled_part(data.train)) if config.probe_every is not None else None
    plain = replace(config.loader, labels="classes", unlabelled=None, in_chans=data.channels, max_train=None)
    plain = replace(plain, train_dir=None, val_dir=None, test_dir=None, image_column=None, label_column=None)
    found = load_data(config.probe_data, plain)
    if len(found.train) < 2:
        raise UserError(f"probe_data {config.probe_data!r} has too few images")
    return found


def embedding_scores(
    model: Backbone | Teacher, data: ImageData, transform: Callable[..., Any], config: RunConfig
) -> EmbeddingScores:
    """Return the accuracy, percent, on the test split by the 20 nearest training images, and of a linear probe.

    Without the probe where a class has no training images.
    """
    train, val, test = (_embed(model, images, transform, config) for images in (data.train, data.val, data.test))
    scores: EmbeddingScores = {"knn": knn_accuracy(train, test)}
    with contextlib.suppress(UserError):
        scores["linear_probe"] = fit_probe(train, val, data.num_classes).accuracy(test)
    return scores


def _embed(model: Backbone | Teacher, images: Images, transform: Callable[..., Any], config: RunConfig) -> Embedded:
    batches = evaluation_loader(images, transform, config.loader.batch_size, workers=config.loader.workers)
    return embed(model, batches, next(model.parameters()).device)


class EmbeddingScorer(L.Callback):
    """Log the accuracy of the embedding on held-out images, percent, every `every` epochs and after the last one.

    `val/knn` is that of the nearest training images. With probe_linear `val/linear_probe` is that of a linear
    classifier; the same held-out images choose its regularisation. Every process computes them on all images, and all
    take those of the first.
    """

    def __init__(self, config: RunConfig, data: ImageData) -> None:
        self.config, self.data = config, data
        self.every = config.probe_every or 1
        self.scored = 0
        """The epoch of the last scores, from 1; 0 before the first."""
        self.scores: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Store the last scores."""
        return {"scored": self.scored, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Show the last scores after a resume."""
        self.scored, self.scores = state_dict["scored"], state_dict["scores"]

    def state(self, epoch: int) -> str:
        """Return the last scores for a line of progress in an epoch (from 1), with their epoch where it is another."""
        shown = [f"  {_WORDS[name]} {value:.2f}%" for name, value in self.scores.items()]
        if shown and self.scored != epoch:
            shown.append(f" (epoch {self.scored})")
        return "".join(shown)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the student where an epoch is due, before the best checkpoint is chosen."""
        if not every_and_last(trainer, self.every):
            return
        assert isinstance(pl_module, DistillModule)
        student = pl_module.deployed
        transform = eval_transform(self.config.augment, student.spec, student.img_size)
        train, val = (_embed(student, images, transform, self.config) for images in (self.data.train, self.data.val))
        scores = {KNN: knn_accuracy(train, val)}
        if self.config.probe_linear:
            scores[LINEAR_PROBE] = fit_probe(train, val, self.data.num_classes).accuracy(val)
        self.scored = trainer.current_epoch + 1
        self.scores = {name: float(value) for name, value in trainer.strategy.broadcast(scores).items()}
        for name, value in self.scores.items():
            pl_module.log(name, value)
