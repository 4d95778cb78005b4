"""How sure a gain is: over seeds, and over test images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from crossdistill.evaluation.predictions import read_predictions
from crossdistill.report.records import RunRecord

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """The difference of two groups in top-1, in percentage points.

    `half_width` is half of the 95% confidence interval over seeds that both groups have; None for fewer than two.
    `p_value` is that of the paired test over the test images; None where predictions are missing or images differ.
    """

    mean: float
    half_width: float | None
    p_value: float | None


def gain(runs: Sequence[RunRecord], plain: Sequence[RunRecord]) -> Gain:
    """Compare runs with plain ones: by Student's t over the differences of equal seeds, and over those of images.

    The test over images asks whether another test set of this size could have turned the sign: the difference of an
    image is that of the fractions of correct predictions over the shared seeds.
    """
    mean = float(np.mean([run.top1 for run in runs]) - np.mean([run.top1 for run in plain]))
    by_seed = {run.metrics["seed"]: run for run in plain}
    pairs = [(run, by_seed[run.metrics["seed"]]) for run in runs if run.metrics["seed"] in by_seed]
    differences = [run.top1 - other.top1 for run, other in pairs]
    if differences:
        mean = float(np.mean(differences))
    half = None
    if len(differences) > 1:
        half = float(stats.sem(differences) * stats.t.ppf((1 + _CONFIDENCE) / 2, len(differences) - 1))
    return Gain(mean, half, _paired(pairs))


def _paired(pairs: Sequence[tuple[RunRecord, RunRecord]]) -> float | None:
    rows = []
    for run, other in pairs:
        mine, theirs = correct(run), correct(other)
        if mine is None or theirs is None or not np.array_equal(mine[0], theirs[0]):
            return None
        rows.append(mine[1].astype(float) - theirs[1])
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    difference = np.mean(rows, axis=0)
    if not difference.any() or difference.std() == 0:
        return 1.0
    return float(stats.ttest_1samp(difference, 0).pvalue)


def correct(run: RunRecord) -> tuple[NDArray[np.int64], NDArray[np.bool_]] | None:
    """Return the true classes of the test images of a run and which predictions are correct; None where not stored.

    Raises UserError for a damaged file.
    """
    found = read_predictions(run.folder, run.metrics["student"]["test"]["images"])
    return None if found is None else (found.targets, found.right)
