"""Scores of a model's predictions."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from crossdistill.evaluation.predictions import Collected
from crossdistill.types import BackboneOutput


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], BackboneOutput],
    batches: Iterable[Any],
    num_classes: int,
    device: torch.device | str = "cpu",
    collected: Collected | None = None,
) -> dict[str, float]:
    """Score a model on batches of (images, targets, ...).

    Returns `top1` and `top5` (percent; top5 for more than 5 classes), `loss` (cross entropy, nats), `ece` (expected
    calibration error, percent, 15 bins) and `images`. The model must be in eval mode already. Scores are those
    of this process alone, also where there are several. Each image's prediction is added to `collected`.
    """
    metrics: dict[str, Any] = {
        "top1": MulticlassAccuracy(num_classes, average="micro", sync_on_compute=False),
        "ece": MulticlassCalibrationError(num_classes, n_bins=15, sync_on_compute=False),
    }
    if num_classes > 5:
        metrics["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5, sync_on_compute=False)
    scores = MetricCollection(metrics, compute_groups=False).to(device)
    loss = MeanMetric(sync_on_compute=False).to(device)
    images = 0
    for batch in batches:
        inputs, targets = batch[0].to(device), batch[1].to(device)
        logits = model(inputs).require_logits().float()
        probabilities = logits.softmax(dim=1)
        scores.update(probabilities, targets)
        if collected is not None:
            collected.add(probabilities, targets)
        loss.update(torch.nn.functional.cross_entropy(logits, targets), weight=len(targets))
        images += len(targets)
    result = {name: 100 * float(value) for name, value in scores.compute().items()}
    return {**result, "loss": float(loss.compute()), "images": images}


@torch.inference_mode()
def ood_auroc(
    model: Callable[[Tensor], BackboneOutput],
    known: Iterable[Any],
    others: Iterable[Any],
    device: torch.device | str = "cpu",
) -> float:
    """Return the area under the ROC curve, percent, by which the largest logit tells known images from others.

    50 is chance, 100 that every known image has a larger one than every other. The model must be in eval mode already.

    Source: max logit, arXiv 1911.11132.
    """
    largest: list[float] = []
    labels: list[int] = []
    for batches, is_known in ((known, 1), (others, 0)):
        for batch in batches:
            largest += model(batch[0].to(device)).require_logits().float().amax(dim=1).tolist()
            labels += [is_known] * (len(largest) - len(labels))
    return 100 * float(roc_auc_score(labels, largest))
