"""A check of the teacher before the training starts."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.teacher import Teacher, renormalisation

_HALF = 0.5
_UNIFORM = 0.95
"""Fraction of the largest entropy from which predictions look like those of an untrained classifier."""
_NORMALISATIONS = {
    "mean and std 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's mean and std": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "pixels in [0, 1] (mean 0, std 1)": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@torch.inference_mode()
def teacher_accuracy(
    teacher: Teacher, batches: Iterable[Any], remap: tuple[Tensor, Tensor] | None = None
) -> tuple[float, Tensor, Tensor]:
    """Return the accuracy on (images normalised for the student, targets, ...), with logits and targets.

    `remap` is a scale and a shift that try another normalisation of the teacher's input.
    """
    device = teacher.scale.device
    scores, labels = [], []
    for images, truth, *_ in batches:
        labels.append(truth)
        seen = teacher.prepare(images.to(device))
        if remap is not None:
            seen = seen * remap[0] + remap[1]
        scores.append(teacher.backbone(seen).require_logits().float().cpu())
    logits, targets = torch.cat(scores), torch.cat(labels)
    return float((logits.argmax(dim=1) == targets).float().mean()), logits, targets


def check_teacher(teacher: Teacher, batches: Iterable[Any], *, trust: bool = False, reads_logits: bool = True) -> float:
    """Return the teacher's accuracy on a sample of held-out images; refuse one near chance, or with a fresh head.

    `batches`, which can be iterated several times, hold images normalised for the student, as the teacher receives them
    in training. Raises UserError, with the likely cause, for an accuracy that always answering the most frequent class
    could reach, or for one below a half with almost uniform predictions (a fresh head on good features is often
    correct by chance), unless `trust`. `reads_logits` states whether the method reads the logits at all.
    """
    accuracy, logits, targets = teacher_accuracy(teacher, batches)
    chance = float(torch.bincount(targets).max()) / len(targets)
    near = chance + 4 * math.sqrt(chance * (1 - chance) / len(targets))
    lucky = accuracy < _HALF and _uniformity(logits) > _UNIFORM
    if (accuracy > min(near, 0.99) and not lucky) or trust:
        return accuracy
    headless = "" if reads_logits else "As the method reads no logits, --model.teacher-classes 0 builds no classifier. "
    raise UserError(
        f"the teacher's accuracy is {100 * accuracy:.1f}% on {len(targets)} held-out images (chance is "
        f"{100 * chance:.1f}%): {_likely_cause(teacher, batches, logits, targets, near)}. {headless}To continue "
        "anyway: --trust-teacher true"
    )


def _likely_cause(teacher: Teacher, batches: Iterable[Any], logits: Tensor, targets: Tensor, near: float) -> str:
    accuracy = float((logits.argmax(dim=1) == targets).float().mean())
    if _uniformity(logits) > _UNIFORM:
        return (
            "its predictions are almost uniform, so its classifier appears untrained; train it on this data first "
            "(`crossdistill teacher`) or give its --teacher-checkpoint"
        )
    renamed = _accuracy_after_renaming(logits, targets)
    if renamed > max(near + 0.1, 0.3):
        return f"its classes seem to be in another order (after renaming them its accuracy is {100 * renamed:.0f}%)"
    spec = teacher.backbone.spec
    for name, (mean, std) in _NORMALISATIONS.items():
        if spec.in_chans != 3:
            break
        scale, shift = renormalisation(spec.mean, spec.std, mean, std)
        device = teacher.scale.device
        other, _, _ = teacher_accuracy(teacher, batches, (scale.to(device), shift.to(device)))
        if other > max(near, accuracy + 0.1):
            return f"its input normalisation is wrong; with {name} its accuracy is {100 * other:.0f}%"
    return "it seems to have been trained on other data, or not at all; fine-tune it first (`crossdistill teacher`)"


def _uniformity(logits: Tensor) -> float:
    """Return the mean entropy of predictions as a fraction of the largest possible."""
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    return float(entropy) / math.log(logits.shape[1])


def _accuracy_after_renaming(logits: Tensor, targets: Tensor) -> float:
    """Return the accuracy on half of the sample, after renaming each class to its most frequent label in the rest."""
    predicted = logits.argmax(dim=1)
    table = torch.zeros(logits.shape[1], logits.shape[1])
    table.index_put_((predicted[::2], targets[::2]), torch.ones(len(targets[::2])), accumulate=True)
    return float((table.argmax(dim=1)[predicted[1::2]] == targets[1::2]).float().mean())
