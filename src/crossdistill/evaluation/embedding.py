"""Accuracy of an embedding: by nearest neighbours and by a linear probe."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from crossdistill.backbones import Backbone
from crossdistill.errors import UserError
from crossdistill.teacher import Teacher

_NEIGHBOURS = 20
_TEMPERATURE = 0.07
PENALTIES = tuple(float(c) for c in np.logspace(-5, 2, 8))
"""Inverse regularisation strengths that are tried, for standardised features."""
_ITERATIONS = 1000


@dataclass(frozen=True)
class Embedded:
    """Embeddings (N, D) in float32 and class numbers (N,) of some images."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __add__(self, other: "Embedded") -> "Embedded":
        return Embedded(np.concatenate([self.features, other.features]), np.concatenate([self.labels, other.labels]))


@torch.inference_mode()
def embed(backbone: Backbone | Teacher, batches: Iterable[Any], device: torch.device | str = "cpu") -> Embedded:
    """Run a backbone, in eval mode, on batches of (images, targets, ...) and collect its embeddings."""
    features, labels = [], []
    for batch in batches:
        features.append(backbone(batch[0].to(device)).embedding.float().cpu().numpy())
        labels.append(torch.as_tensor(batch[1]).cpu().numpy())
    return Embedded(np.concatenate(features), np.concatenate(labels).astype(np.int64))


def knn_accuracy(train: Embedded, test: Embedded) -> float:
    """Return the top-1 accuracy, percent, of the 20 nearest neighbours by cosine, each weighted by exp(cosine / 0.07).

    The protocol of DINO (arXiv 2104.14294).
    """
    neighbours = KNeighborsClassifier(
        min(_NEIGHBOURS, len(train.labels)), metric="cosine", weights=lambda d: np.exp((1 - d) / _TEMPERATURE)
    )
    return 100 * float(neighbours.fit(train.features, train.labels).score(test.features, test.labels))


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of embeddings: logits = features @ weight.T + bias."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    penalty: float
    """Inverse strength of the regularisation (scikit-learn's C) that the validation images chose."""

    def accuracy(self, images: Embedded) -> float:
        """Return the top-1 accuracy, percent."""
        predicted = (images.features @ self.weight.T + self.bias).argmax(axis=1)
        return 100 * float((predicted == images.labels).mean())

    def loss(self, images: Embedded) -> float:
        """Return the mean cross entropy, nats."""
        logs = log_softmax(images.features @ self.weight.T + self.bias, axis=1)
        return -float(logs[np.arange(len(images.labels)), images.labels].mean())


def check_probe(train: Sequence[int], val: Sequence[int], num_classes: int) -> None:
    """Raise UserError where no linear probe can be fitted to images with these class numbers."""
    if not len(val):
        raise UserError("there are no validation images with a label, so no regularisation can be chosen")
    missing = sorted(set(range(num_classes)) - set(train))
    if missing:
        raise UserError(f"class {missing[0]} has no training images, so no classifier can be fitted")


def fit_probe(
    train: Embedded,
    val: Embedded,
    num_classes: int,
    penalties: Iterable[float] = PENALTIES,
    *,
    choose_by: Literal["accuracy", "loss"] = "accuracy",
) -> LinearProbe:
    """Fit a logistic regression on standardised embeddings; the validation images choose the regularisation.

    By accuracy, as linear evaluations do, or by cross entropy where the probabilities are used: a strong regularisation
    can be as accurate with probabilities that are almost uniform. Raises UserError for a class without training images,
    and without validation images.
    """
    check_probe(train.labels.tolist(), val.labels.tolist(), num_classes)
    scaler = StandardScaler().fit(train.features)
    scaled = scaler.transform(train.features)
    best: tuple[float, LinearProbe] | None = None
    for penalty in penalties:
        with warnings.catch_warnings():
            # A fit that stops early is one more candidate, and the validation images compare them.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=penalty, max_iter=_ITERATIONS).fit(scaled, train.labels)
        probe = _unscaled(fitted, scaler, penalty)
        score = probe.accuracy(val) if choose_by == "accuracy" else -probe.loss(val)
        # Of equal ones, the stronger regularisation.
        if best is None or score > best[0]:
            best = score, probe
    assert best is not None
    return best[1]


def _unscaled(fitted: LogisticRegression, scaler: StandardScaler, penalty: float) -> LinearProbe:
    """Return the classifier of the embeddings before they were standardised."""
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:
        # Of two classes scikit-learn fits the difference of the logits.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    return LinearProbe(weight, bias - weight @ scaler.mean_, penalty)
