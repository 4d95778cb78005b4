"""A linear probe on the cells of a stage map, scored as a segmentation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from crossdistill.backbones import Backbone
from crossdistill.data.masks import IGNORED, MaskedImages
from crossdistill.errors import UserError
from crossdistill.evaluation.embedding import PENALTIES, Embedded, LinearProbe, fit_probe
from crossdistill.progress import Tracked

_MOST_CELLS = 50_000
"""Cells that the classifier is fitted on, drawn evenly from all training images."""
_HELD_OUT = 5
"""One training image in so many chooses the regularisation."""


@dataclass(frozen=True)
class Segmentation:
    """Scores of a linear probe on stage maps, in percent."""

    miou: float
    """Intersection over union, mean over the classes that the test masks or the predictions have."""
    pixel_accuracy: float
    images: int
    grid: tuple[int, int]
    """Cells of the map."""


@torch.inference_mode()
def segment(
    backbone: Backbone,
    train: MaskedImages,
    test: MaskedImages,
    transform: Callable[[Any], Tensor],
    console: Console,
    *,
    stage: int = 4,
    device: torch.device | str = "cpu",
) -> Segmentation:
    """Fit a logistic regression on the cells of a frozen network's stage map, and score it pixel by pixel.

    The target of a cell is the class of most of its pixels. The test images' logits are enlarged to the size of their
    masks (bilinear) and compared at every pixel that is not ignored. `transform` must show the whole image. Raises
    UserError for masks that cannot be read, and for fewer than two classes.
    """
    backbone.to(device).eval()

    def read(images: MaskedImages, index: int) -> tuple[Tensor, NDArray[np.uint8]]:
        pixels = transform(images.images.read(index))[None].to(device)
        return backbone(pixels, stages=True).require_stages()[stage - 1][0].float(), images.mask(index)

    known, probe = _fitted(*_all_cells(read, train, console), console)
    weight = torch.from_numpy(probe.weight).float().to(device)
    bias = torch.from_numpy(probe.bias).float().to(device)
    confusion = MulticlassConfusionMatrix(IGNORED + 1, sync_on_compute=False)
    for index in Tracked(range(len(test)), console, "segmentation of the test images", "image"):
        features, labels = read(test, index)
        mask = torch.from_numpy(labels)
        logits = torch.einsum("kc,chw->khw", weight, features) + bias[:, None, None]
        whole = F.interpolate(logits[None], mask.shape, mode="bilinear")[0]
        predicted = torch.from_numpy(known)[whole.argmax(dim=0).cpu()]
        used = mask != IGNORED
        confusion.update(predicted[used].long(), mask[used].long())
    miou, accuracy = _scores(confusion.compute().double())
    return Segmentation(miou, accuracy, len(test), (features.shape[1], features.shape[2]))


def _scores(counts: Tensor) -> tuple[float, float]:
    """Return the mean intersection over union and the accuracy, in percent, of a confusion matrix of pixels."""
    if not counts.sum():
        raise UserError("every pixel of the test masks is ignored (255)")
    right, union = counts.diagonal(), counts.sum(dim=0) + counts.sum(dim=1) - counts.diagonal()
    present = union > 0
    return 100 * float((right[present] / union[present]).mean()), 100 * float(right.sum() / counts.sum())


def _all_cells(
    read: Callable[[MaskedImages, int], tuple[Tensor, NDArray[np.uint8]]], images: MaskedImages, console: Console
) -> tuple[Embedded, Embedded]:
    """Return the cells of the images that a classifier is fitted on, and of those that choose its regularisation."""
    fitted: list[Embedded] = []
    held_out: list[Embedded] = []
    for index in Tracked(range(len(images)), console, "cells of the training images", "image"):
        (held_out if index % _HELD_OUT == _HELD_OUT - 1 else fitted).append(_cells(*read(images, index)))
    if not fitted or not held_out:
        raise UserError(f"a segmentation is fitted on at least {_HELD_OUT} images; there are {len(images)}")
    return _thinned(fitted), _thinned(held_out)


def _cells(features: Tensor, mask: NDArray[np.uint8]) -> Embedded:
    """Return the cells of a map with the class of most of their pixels; those without one are left out."""
    rows = features.flatten(1).T.cpu().numpy()
    labels = torch.from_numpy(mask).long()
    classes = torch.unique(labels)
    parts = torch.stack([(labels == one).float() for one in classes])
    shares = F.adaptive_avg_pool2d(parts[None], (features.shape[1], features.shape[2]))[0].flatten(1)
    most = classes[shares.argmax(dim=0)].numpy()
    return Embedded(rows[most != IGNORED], most[most != IGNORED])


def _thinned(images: list[Embedded]) -> Embedded:
    features, labels = (np.concatenate([getattr(one, name) for one in images]) for name in ("features", "labels"))
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(_MOST_CELLS, len(labels))).round().astype(int))
    return Embedded(features[chosen], labels[chosen])


def _fitted(cells: Embedded, held_out: Embedded, console: Console) -> tuple[NDArray[np.int64], LinearProbe]:
    """Fit the classifier; returns the class number of each of its outputs as well."""
    known = np.unique(cells.labels)
    if len(known) < 2:
        raise UserError(f"the cells of the training masks have {len(known)} class; a segmentation needs at least 2")
    number = np.full(IGNORED + 1, -1)
    number[known] = np.arange(len(known))
    # A class of the held-out cells that no other cell has counts as an error.
    return known, fit_probe(
        Embedded(cells.features, number[cells.labels]),
        Embedded(held_out.features, number[held_out.labels]),
        len(known),
        Tracked(PENALTIES, console, "linear probe", "fit"),
    )
