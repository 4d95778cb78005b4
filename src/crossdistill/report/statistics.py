"""How sure a gain is: over seeds, and over test images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from crossdistill.report.measure import score
from crossdistill.report.records import RunRecord

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """The difference of two groups in their scores, in points: over the seeds that both have, if there are any.

    `half_width` is half of the 95% confidence interval over seeds that both groups have; None for fewer than two.
    `p_value` is that of the paired test over the test images, for the models of these seeds: it does not contain the
    variation between seeds. None where predictions are missing or images differ.
    """

    mean: float
    half_width: float | None
    p_value: float | None


def gain(runs: Sequence[RunRecord], plain: Sequence[RunRecord]) -> Gain:
    """Compare runs with plain ones: by Student's t over the differences of equal seeds, and over those of images.

    The test over images asks whether another test set of this size could have turned the sign: the difference of an
    image is that of the fractions of correct predictions over the shared seeds.
    """
    by_seed = {run.metrics["seed"]: run for run in plain}
    pairs = [(run, by_seed[run.metrics["seed"]]) for run in runs if run.metrics["seed"] in by_seed]
    differences = [score(run) - score(other) for run, other in pairs]
    unpaired = float(np.mean([score(run) for run in runs]) - np.mean([score(run) for run in plain]))
    mean = np.mean(differences or [unpaired])
    half = None
    if len(differences) > 1:
        half = float(stats.sem(differences) * stats.t.ppf((1 + _CONFIDENCE) / 2, len(differences) - 1))
    return Gain(float(mean), half, _paired(pairs))


def _paired(pairs: Sequence[tuple[RunRecord, RunRecord]]) -> float | None:
    """Return the p-value over the test images; None where predictions are missing, or are of other images."""
    rows = []
    for run, other in pairs:
        mine, theirs = run.predictions(), other.predictions()
        if mine is None or theirs is None or not np.array_equal(mine.targets, theirs.targets):
            return None
        if run.test_images() != other.test_images():
            return None
        rows.append(mine.right.astype(float) - theirs.right)
    if len({len(row) for row in rows}) != 1:
        return None
    difference = np.mean(rows, axis=0)
    if difference.std() == 0:
        return 0.0 if difference.any() else 1.0
    return float(stats.ttest_1samp(difference, 0).pvalue)
