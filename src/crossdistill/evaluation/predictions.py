"""The predicted class of every test image of a run, stored for comparisons on the same images.

Reports read these files, so importing this module does not import torch.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import UserError, kind_and_line
from crossdistill.files import open_plain, write_whole

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

_MOST = 2**31
"""No data set has so many classes."""
PREDICTIONS_NAME = "predictions.npz"


@dataclass(frozen=True)
class Predictions:
    """True and predicted classes (N,) int64, and the probabilities (N,) float32 of the latter."""

    targets: NDArray[np.int64]
    classes: NDArray[np.int64]
    confidence: NDArray[np.float32]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which predictions are correct."""
        correct: NDArray[np.bool_] = self.classes == self.targets
        return correct


@dataclass
class Collected:
    """Predictions that are collected batch by batch."""

    _batches: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=list)

    def add(self, probabilities: 'Float[Tensor, "batch classes"]', targets: 'Int[Tensor, " batch"]') -> None:
        """Add a batch."""
        confidence, classes = probabilities.max(dim=1)
        self._batches.append((targets.cpu().numpy(), classes.cpu().numpy(), confidence.float().cpu().numpy()))

    def write(self, folder: Path) -> None:
        """Write the predictions into the folder of a run, completely or not at all."""
        targets, classes, confidence = (np.concatenate(parts) for parts in zip(*self._batches, strict=True))
        content = io.BytesIO()
        np.savez(content, targets=targets.astype(np.int64), classes=classes.astype(np.int64), confidence=confidence)
        write_whole(folder / PREDICTIONS_NAME, content.getvalue())


def read_predictions(folder: Path, images: int) -> Predictions | None:
    """Read the predictions of a run for `images` test images; None where there are none.

    Raises UserError for a damaged file.
    """
    path = folder / PREDICTIONS_NAME
    if not path.exists():
        return None
    try:
        with open_plain(path) as file, np.load(file, allow_pickle=False) as stored:
            found = Predictions(stored["targets"], stored["classes"], stored["confidence"])
        for labels in (found.targets, found.classes):
            if labels.shape != (images,) or labels.dtype != np.int64 or not 0 <= labels.min() <= labels.max() < _MOST:
                raise ValueError(f"it does not hold {images} class numbers")
        if found.confidence.shape != (images,) or not np.isfinite(found.confidence).all():
            raise ValueError("it does not hold a probability for each image")
    except Exception as error:  # zipfile and numpy raise many kinds for a damaged file
        raise UserError(f"{str(path)!r} is damaged ({kind_and_line(error)}); delete it to do without it") from error
    return found
