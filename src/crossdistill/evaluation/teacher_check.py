"""A check of the teacher before the training starts."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.teacher import Teacher, renormalisation

_HALF = 0.5
_SURPRISING = 0.01
"""Probability from which a number of right answers is not put down to chance."""
_ASSIGNMENTS = 1999
_DEVIATIONS = 4
_EXCHANGED = 1e-4
"""Probability below which an exchange of classes is reported."""
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


@dataclass(frozen=True)
class TeacherCheck:
    """How good a teacher is on a sample of held-out images, and what is to be said about it."""

    accuracy: float
    notes: tuple[str, ...] = ()


def check_teacher(
    teacher: Teacher,
    batches: Iterable[Any],
    *,
    class_names: Sequence[str] | None = None,
    trust: bool = False,
    reads_logits: bool = True,
    name: str | None = None,
) -> TeacherCheck:
    """Score the teacher on a sample of held-out images; refuse one that answers as if it never learned.

    `batches`, which can be iterated several times, hold images normalised for the student, as the teacher receives them
    in training. A teacher never learned where answers that have nothing to do with the images, given as often for each
    class as it gives them, are right as often: by a permutation test from an accuracy of one half, by four standard
    deviations below it, where a fresh head on good features is often right by chance. Raises UserError for such a
    teacher, unless `trust`. `reads_logits` states whether the method reads the logits at all, `name` what the teacher
    is called.
    """
    accuracy, logits, targets = teacher_accuracy(teacher, batches)
    predicted = logits.argmax(dim=1)
    if _best_surprise(targets) > _SURPRISING:
        return TeacherCheck(accuracy, (f"{len(targets)} held-out images are too few to tell whether it has learned",))
    if accuracy < _HALF:
        learned = _deviations(predicted, targets) > _DEVIATIONS and _uniformity(logits) <= _UNIFORM
    else:
        learned = _surprise(predicted, targets) < _SURPRISING
    if learned or trust:
        return TeacherCheck(accuracy, tuple(_exchanged_classes(predicted, targets, logits.shape[1], class_names)))
    chance = float(torch.bincount(targets).max()) / len(targets)
    headless = "" if reads_logits else "As the method reads no logits, --model.teacher-classes 0 builds no classifier. "
    raise UserError(
        f"the accuracy of teacher {name or teacher.backbone.spec.name} is {100 * accuracy:.1f}% on {len(targets)} "
        f"held-out images (chance is {100 * chance:.1f}%): {_likely_cause(teacher, batches, logits, targets, chance)}. "
        f"{headless}To continue anyway: --trust-teacher true"
    )


def _likely_cause(teacher: Teacher, batches: Iterable[Any], logits: Tensor, targets: Tensor, chance: float) -> str:
    near = chance + _DEVIATIONS * math.sqrt(chance * (1 - chance) / len(targets))
    predicted = logits.argmax(dim=1)
    accuracy = float((predicted == targets).float().mean())
    renamed = _accuracy_after_renaming(predicted, targets, logits.shape[1])
    other_order = (
        f"its classes seem to be in another order (after renaming them its accuracy is {100 * renamed:.0f}%); "
        "--model.teacher-classes FILE states their names in the order of its logits"
    )
    in_other_order = renamed > max(near + 0.1, 0.3)
    if _uniformity(logits) > _UNIFORM:
        return (
            "its predictions are almost uniform, so its classifier appears untrained (or its logits are too small to "
            "teach anything); train it on this data first (`crossdistill teacher`) or give its --teacher-checkpoint"
        ) + (f". Or {other_order}" if in_other_order else "")
    if in_other_order:
        return other_order
    spec = teacher.backbone.spec
    for name, (mean, std) in _NORMALISATIONS.items():
        if spec.in_chans != 3:
            break
        scale, shift = renormalisation(spec.mean, spec.std, mean, std)
        device = teacher.scale.device
        other, _, _ = teacher_accuracy(teacher, batches, (scale.to(device), shift.to(device)))
        if other > max(near, accuracy + 0.1):
            return f"its input normalisation is wrong; with {name} its accuracy is {100 * other:.0f}%"
    expected, _ = _unrelated(predicted, targets)
    return (
        "answers that have nothing to do with the images, given as often for each class, would be right in "
        f"{100 * expected / len(targets):.1f}%; fine-tune it first (`crossdistill teacher`)"
    )


def _unrelated(predicted: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return mean and variance of the number of right answers where each answer is given for a random image."""
    n, classes = len(targets), int(max(predicted.max(), targets.max())) + 1
    a, b = (torch.bincount(numbers, minlength=classes).double() for numbers in (predicted, targets))
    total = float((a * b).sum())
    spread = total - float((a * b * b + a * a * b).sum()) / n + (total / n) ** 2
    return total / n, max(spread, 0.0) / max(n - 1, 1)


def _deviations(predicted: Tensor, targets: Tensor) -> float:
    """Return by how many standard deviations more answers are right than of unrelated ones."""
    mean, variance = _unrelated(predicted, targets)
    return (int((predicted == targets).sum()) - mean) / math.sqrt(variance) if variance > 0 else 0.0


def _surprise(predicted: Tensor, targets: Tensor) -> float:
    """Return the fraction of random assignments of the same answers to the images in which as many are right."""
    right = int((predicted == targets).sum())
    generator = torch.Generator().manual_seed(0)
    as_good = 1
    for _ in range(_ASSIGNMENTS):
        order = torch.randperm(len(targets), generator=generator)
        as_good += int((predicted[order] == targets).sum()) >= right
    return as_good / (_ASSIGNMENTS + 1)


def _best_surprise(targets: Tensor) -> float:
    """Return the probability that answers which are all right in number are all right by chance."""
    counts = torch.bincount(targets).double()
    return math.exp(float(torch.lgamma(counts + 1).sum() - torch.lgamma(counts.sum() + 1)))


def _uniformity(logits: Tensor) -> float:
    """Return the mean entropy of predictions as a fraction of the largest possible."""
    entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    return float(entropy) / math.log(logits.shape[1])


def _accuracy_after_renaming(predicted: Tensor, targets: Tensor, classes: int) -> float:
    """Return the accuracy on half of the sample, after renaming each class to its most frequent label in the rest."""
    one, other = _halves(len(targets))
    names = _renaming(predicted[one], targets[one], classes)
    return float((names[predicted[other]] == targets[other]).float().mean())


def _halves(size: int) -> tuple[Tensor, Tensor]:
    # At random: a set whose classes take turns has only some of them at the even places.
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return order[::2], order[1::2]


def _renaming(predicted: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Return the most frequent label of the images of each answer; an answer that is never given stays."""
    table = torch.zeros(classes, classes)
    table.index_put_((predicted, targets), torch.ones(len(targets)), accumulate=True)
    return torch.where(table.sum(dim=1) > 0, table.argmax(dim=1), torch.arange(classes))


def _exchanged_classes(
    predicted: Tensor, targets: Tensor, classes: int, class_names: Sequence[str] | None
) -> Iterator[str]:
    """Say which classes seem to be exchanged: renamed by one half of the sample, the other half is more often right."""
    one, rest = _halves(len(targets))
    names = _renaming(predicted[one], targets[one], classes)
    other, truth = predicted[rest], targets[rest]
    better = int(((names[other] == truth) & (other != truth)).sum())
    worse = int(((names[other] != truth) & (other == truth)).sum())
    # A renaming that means nothing is as often wrong as right: the chance of so many of these to be right.
    chance = sum(math.comb(better + worse, k) for k in range(better, better + worse + 1)) / 2 ** (better + worse)
    if better <= worse or chance > _EXCHANGED:
        return
    label = [str(k) for k in range(classes)] if class_names is None else list(class_names)
    pairs = [f"{label[k]!r} for {label[int(n)]!r}" for k, n in enumerate(names) if int(n) != k][:4]
    yield (
        f"some of its classes seem to be in another order: it answers {', '.join(pairs)} (after renaming {better} more "
        f"and {worse} fewer of {len(truth)} images are right); --model.teacher-classes FILE states its names"
    )
