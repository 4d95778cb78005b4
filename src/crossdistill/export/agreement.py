"""Several ways to run one student, compared on the same images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from crossdistill.data.datasets import Images, Part
from crossdistill.errors import UserError
from crossdistill.export.runners import Runner
from crossdistill.progress import Tracked

LARGEST_DIFFERENCE = 1e-3
"""Largest difference between the outputs of a network and its export that counts as rounding."""
_BATCH = 32


@dataclass(frozen=True)
class Agreement:
    """How one way to run a student compares with PyTorch.

    `difference` is the largest one of all logits (without a classifier: of the embedding, relative to its largest value
    where that is above 1), `same` the percentage of images whose class is the same, `top1` the accuracy in percent;
    None where they do not apply.
    """

    difference: float
    same: float | None
    top1: float | None


class _Batches:
    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return -(-len(self.images) // _BATCH)

    def __iter__(self) -> Iterator[range]:
        return (range(i, min(i + _BATCH, len(self.images))) for i in range(0, len(self.images), _BATCH))


def compare(
    models: Mapping[str, Runner], reference: str, images: Images, labels: Sequence[int] | None, console: Console
) -> dict[str, Agreement]:
    """Run all models on all images. Raises UserError for an output that is not finite."""
    difference, same, right = (dict.fromkeys(models, 0.0) for _ in range(3))
    classified = True
    for numbers in Tracked(_Batches(images), console, "checking the export"):
        decoded = [images.read(number) for number in numbers]
        outputs = {}
        for name, model in models.items():
            logits, embedding = model.run([model.prepare(image) for image in decoded])
            classified = logits is not None
            outputs[name] = logits if classified else embedding
            if not np.isfinite(outputs[name]).all():
                raise UserError(f"{name}: its output for the images {numbers[0]} to {numbers[-1]} is not finite")
        expected = outputs[reference]
        scale = 1.0 if classified else max(1.0, float(np.abs(expected).max()))
        for name, found in outputs.items():
            difference[name] = max(difference[name], float(np.abs(found - expected).max()) / scale)
            if classified:
                same[name] += float((found.argmax(1) == expected.argmax(1)).sum())
                if labels is not None:
                    right[name] += float((found.argmax(1) == [labels[number] for number in numbers]).sum())
    share = 100 / len(images)
    return {
        name: Agreement(
            difference[name],
            same[name] * share if classified else None,
            right[name] * share if classified and labels is not None else None,
        )
        for name in models
    }


def check_difference(name: str, found: Agreement) -> None:
    """Raise UserError where an export computes something else than the network."""
    if not found.difference <= LARGEST_DIFFERENCE:
        raise UserError(
            f"{name} differs from PyTorch by up to {found.difference:.2g}, more than {LARGEST_DIFFERENCE:g}: it would "
            "not be the same model, and was not written"
        )


def evenly(images: Images, most: int | None) -> Images:
    """Return at most `most` images, evenly spaced over the split; all for None."""
    if most is None or len(images) <= most:
        return images
    return Part(images, np.linspace(0, len(images) - 1, most).round().astype(np.int64))
