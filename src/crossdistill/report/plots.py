"""Curves and comparisons as SVG, to be put into a page."""

import io
import re
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crossdistill.report.measure import measure_of_all, score
from crossdistill.report.records import Curve, RunRecord
from crossdistill.tasks import KNN, LINEAR_PROBE, Classification, NoLabels

COLOURS = ["#6b7280", "#d97706", "#2563eb", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d"]
_DASHES = ("-", "--", ":", "-.")
"""Kinds of lines, for more lines than colours."""
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "axes.edgecolor": "#9ca3af",
    "svg.fonttype": "none",
    "svg.hashsalt": "crossdistill",
}


def run_curves(run: RunRecord) -> str:
    """Plot a run's losses, held-out accuracy, learning rate and speed over its epochs."""
    # A term that is 0 throughout (the task's, without labels) has no line on a logarithmic axis.
    terms = sorted(
        name
        for name, curve in run.curves.items()
        if name.startswith("train/") and name.split("/")[1] not in _NOT_TERMS and any(value for _, value in curve)
    )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(9, 5), layout="constrained")
        for number, name in enumerate(terms):
            again, place = divmod(number, len(COLOURS))
            dashes = _DASHES[again % len(_DASHES)]
            _line(axes[0, 0], run.curves[name], COLOURS[place], name.split("/")[1], dashes)
        axes[0, 0].set_yscale("log")
        _finish(axes[0, 0], "unweighted loss terms, training (log scale)")
        labelled = NoLabels.monitor not in run.curves
        held_out = Classification.monitor if labelled else NoLabels.monitor
        neighbours = run.curves.get(KNN, [])
        if labelled or not neighbours:
            _line(axes[0, 1], run.curves.get(held_out, []), COLOURS[2], "top-1" if neighbours else None)
        if neighbours:
            _line(axes[0, 1], neighbours, COLOURS[3], "nearest neighbours")
        if LINEAR_PROBE in run.curves:
            _line(axes[0, 1], run.curves[LINEAR_PROBE], COLOURS[4], "linear probe")
        accuracy = labelled or neighbours
        _finish(axes[0, 1], "accuracy on held-out images, %" if accuracy else "weighted terms, held-out split")
        _line(axes[1, 0], run.curves.get("train/lr", []), COLOURS[0], None)
        _finish(axes[1, 0], "learning rate")
        _line(axes[1, 1], run.curves.get("train/images_per_second", []), COLOURS[0], None)
        _finish(axes[1, 1], "images per second, training")
        axes[1, 1].set_ylim(bottom=0)
        return svg_of(figure)


_NOT_TERMS = ("lr", "images_per_second", "wait_percent", "loss")


def comparison(groups: Mapping[str, Sequence[RunRecord]], teacher: float | None) -> str:
    """Plot each method's held-out score over the epochs (mean and range) and its test score for each seed.

    `teacher` is the score of the teacher.
    """
    measure = measure_of_all([run for runs in groups.values() for run in runs])
    with plt.rc_context(STYLE):
        figure, (left, right) = _two_axes(groups)
        for place, (method, runs) in enumerate(groups.items()):
            colour = COLOURS[place % len(COLOURS)]
            curves = [dict(run.curves.get(measure.curve, [])) for run in runs]
            shared = sorted(set.intersection(*(set(curve) for curve in curves)))
            values = [[curve[x] for curve in curves] for x in shared]
            marker = "o" if len(shared) == 1 else None
            left.plot(shared, [statistics.mean(v) for v in values], color=colour, label=method, marker=marker, ms=4)
            left.fill_between(
                shared, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, lw=0
            )
            tested = [score(run) for run in runs]
            right.scatter(tested, [place] * len(tested), color=colour, alpha=0.6, s=28, zorder=3)
            right.plot([statistics.mean(tested)] * 2, [place - 0.25, place + 0.25], color=colour, lw=2.5, zorder=4)
        if teacher is not None:
            right.axvline(teacher, color="#111827", lw=1, ls="--", label="teacher")
            right.legend(frameon=False, loc="best")
        left.legend(frameon=False)
        _finish(left, f"{measure.name} on the held-out split, %: mean and range over seeds")
        right.set_yticks(range(len(groups)), list(groups))
        right.set_ylim(len(groups) - 0.5, -0.5)
        right.set_title(f"{measure.name} on the test split, %", loc="left", fontsize=9)
        return svg_of(figure)


def _two_axes(groups: Mapping[str, Any]) -> tuple[Figure, Any]:
    """Make axes side by side, or one above the other for the long names of a grid."""
    height = max(3.4, 0.25 * len(groups))
    if max(map(len, groups)) <= 24:
        return plt.subplots(1, 2, figsize=(9, height), layout="constrained", width_ratios=(3, 2))
    return plt.subplots(2, 1, figsize=(9, 3.4 + height), layout="constrained", height_ratios=(3.4, height))


def _line(axis: Axes, curve: Curve, colour: str, label: str | None, dashes: str = "-") -> None:
    if curve:
        # A single point is no line.
        marker = "o" if len(curve) == 1 else None
        axis.plot(*zip(*curve, strict=True), dashes, color=colour, label=label, lw=1.5, marker=marker, ms=4)
    if label is not None:
        axis.legend(frameon=False)


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=9)
    axis.set_xlabel("epoch")


def svg_of(figure: Figure) -> str:
    """Return a figure as an SVG element that scales with its page, and close it."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Glyphs that the font lacks, and long labels: the browser draws the text, and the page has it in full.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    # Without width and height the element scales with the page.
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text[text.index("<svg") :], count=1)
