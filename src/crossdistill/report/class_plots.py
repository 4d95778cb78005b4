"""Plots of single predictions: how sure they are, and which classes gain."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from crossdistill.backbones.args import read_class_names
from crossdistill.report.groups import Group
from crossdistill.report.measure import score
from crossdistill.report.plots import COLOURS, STYLE, svg_of
from crossdistill.report.records import RunRecord

_BINS = 15
_MOST_CLASSES = 30
_MOST_GROUPS = len(COLOURS)


def reliability(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Plot the accuracy of predictions by their confidence: title, SVG, text; None where no predictions are stored.

    The bins are those of the calibration error in the tables.
    """
    title = "Reliability: accuracy of the predictions by their confidence (first seed"
    title += f", the first {_MOST_GROUPS} groups)" if len(groups) > _MOST_GROUPS else ")"
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
        axis.plot([0, 100], [0, 100], color="#9ca3af", lw=1, ls="--")
        said = []
        for group, colour in zip(groups[:_MOST_GROUPS], COLOURS, strict=False):
            found = group.runs[0].predictions()
            if found is None:
                continue
            bins = np.minimum((found.confidence * _BINS).astype(int), _BINS - 1)
            filled = [b for b in range(_BINS) if (bins == b).any()]
            x = [100 * found.confidence[bins == b].mean() for b in filled]
            y = [100 * found.right[bins == b].mean() for b in filled]
            axis.plot(x, y, color=colour, marker="o", ms=3, lw=1.5, label=group.label)
            said.append(f"{group.label}: " + ", ".join(f"{a:.0f}: {b:.0f}" for a, b in zip(x, y, strict=True)))
        axis.set_xlabel("confidence, %")
        axis.set_ylabel("correct, %")
        if said:
            axis.legend(frameon=False)
        svg, text = svg_of(figure), "Confidence and correct predictions, %. " + "; ".join(said) + "."
        return {"title": title, "svg": svg, "narrow": True, "text": text} if said else None


def class_gains(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Plot the gain of the best group over its plain students by class: title, SVG, text; None where not known."""
    best = max((group for group in groups if group.base), key=_mean, default=None)
    if best is None or best.base is None:
        return None
    title = f"Gain by class: {best.label} over {best.base.label}"
    mine, theirs = by_class(best.runs), by_class(best.base.runs)
    if mine is None or theirs is None or len(mine) != len(theirs):
        return None
    difference = mine - theirs
    order = np.argsort(difference)[::-1]
    if len(order) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
        title += f" (the {half} largest gains and losses)"
    names = read_class_names(best.runs[0].folder) or [str(number) for number in range(len(difference))]
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9, 1 + 0.22 * len(order)), layout="constrained")
        values = difference[order]
        axis.set_axisbelow(True)
        axis.barh(range(len(order)), values, color=[COLOURS[3] if value >= 0 else COLOURS[4] for value in values])
        axis.set_yticks(range(len(order)), [names[number] for number in order])
        axis.invert_yaxis()
        axis.set_xlabel("difference in the percentage of correct predictions, points, mean over seeds")
        said = ", ".join(f"{names[number]} {difference[number]:+.1f}" for number in order)
        return {"title": title, "svg": svg_of(figure), "text": f"Points by class: {said}."}


def _mean(group: Group) -> float:
    return float(np.mean([score(run) for run in group.runs]))


def by_class(runs: Sequence[RunRecord]) -> NDArray[np.float64] | None:
    """Return the percentage of correct predictions of each class (K,), mean over runs; None where it is not stored."""
    rows = []
    for run in runs:
        if (found := run.predictions()) is None:
            return None
        counts = np.bincount(found.targets)
        rows.append(100 * np.bincount(found.targets, weights=found.right) / np.maximum(counts, 1))
    return np.mean(rows, axis=0) if len({len(row) for row in rows}) == 1 else None
