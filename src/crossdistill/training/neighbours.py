"""The nearest-neighbour accuracy of the student's embedding, while it trains."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as L

from crossdistill.backbones import Backbone
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.mixed import labelled_part
from crossdistill.data.transforms import eval_transform
from crossdistill.errors import UserError
from crossdistill.evaluation.embedding import embed, knn_accuracy
from crossdistill.tasks import KNN
from crossdistill.teacher import Teacher
from crossdistill.training.module import DistillModule


def read_probe_data(config: RunConfig, data: ImageData) -> ImageData | None:
    """Return the labelled images that score the embedding: probe_data, or those of the run; None where none do.

    Raises UserError for data without labels.
    """
    if config.probe_data is None:
        return replace(data, train=labelled_part(data.train)) if config.probe_every is not None else None
    plain = replace(config.loader, labels="classes", unlabelled=None, in_chans=data.channels, max_train=None)
    plain = replace(plain, train_dir=None, val_dir=None, test_dir=None, image_column=None, label_column=None)
    found = load_data(config.probe_data, plain)
    if len(found.train) < 2:
        raise UserError(f"probe_data {config.probe_data!r} has too few images")
    return found


def neighbour_score(
    model: Backbone | Teacher, split: str, data: ImageData, transform: Callable[..., Any], config: RunConfig
) -> float:
    """Return the accuracy, percent, on a split ("val" or "test") by the 20 nearest training images."""
    device = next(model.parameters()).device
    found = []
    for images in (data.train, getattr(data, split)):
        batches = evaluation_loader(images, transform, config.loader.batch_size, workers=config.loader.workers)
        found.append(embed(model, batches, device))
    return knn_accuracy(*found)


class Neighbours(L.Callback):
    """Log `val/knn`, percent, every `every` epochs: held-out images by their nearest training images.

    Every process computes it on all images, and all take that of the first.
    """

    def __init__(self, config: RunConfig, data: ImageData) -> None:
        self.config, self.data = config, data
        self.every = config.probe_every or 1

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the student where an epoch is due, before the best checkpoint is chosen."""
        if (trainer.current_epoch + 1) % self.every:
            return
        assert isinstance(pl_module, DistillModule)
        student = pl_module.deployed
        transform = eval_transform(self.config.augment, student.spec, student.img_size)
        score = neighbour_score(student, "val", self.data, transform, self.config)
        pl_module.log(KNN, float(trainer.strategy.broadcast(score)))
