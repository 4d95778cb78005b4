"""What `crossdistill inspect` has found on one or several runs, as tables and figures of a page."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from crossdistill.report.inspection import Inspection, Robustness
from crossdistill.report.plots import COLOURS, STYLE, svg_of
from crossdistill.report.tables import TextTable

LAYERS = ("stage 1", "stage 2", "stage 3", "stage 4", "embedding")


@dataclass(frozen=True)
class Inspected:
    """What was found on a run, and what its models are called in tables."""

    student: str
    teacher: str
    found: Inspection


def inspected_tables(runs: Sequence[Inspected]) -> list[TextTable]:
    """Make the tables that compare student and teacher; those that nothing is known for are left out."""
    return [table for table in (agreement_table(runs), robustness_table(runs)) if table]


def inspected_figures(runs: Sequence[Inspected]) -> list[dict[str, Any]]:
    """Make the figures that compare student and teacher: title, SVG, text."""
    several = len(runs) > 1
    figures = [_robustness_figure(_robust(runs))]
    figures += [_alignment_figure(run.found, f", {run.student}" if several else "") for run in runs]
    return [figure for figure in figures if figure]


def agreement_table(runs: Sequence[Inspected]) -> TextTable | None:
    """Make the table of how far students and their teachers agree; None without teachers."""
    columns = {"same": "same class", "both_right": "both right", "student_only": "only student right"}
    columns |= {"teacher_only": "only teacher right", "both_wrong": "both wrong"}
    rows = []
    for run in runs:
        shared, known = run.found.get("shared_neighbours"), dict(run.found.get("agreement", {}))
        if shared is not None or known:
            cells = [f"{known[name]:.2f}" if known else "" for name in columns]
            rows.append([run.student, *cells, "" if shared is None else f"{shared:.2f}"])
    images = ", ".join(f"{count:,}" for count in dict.fromkeys(run.found["images"] for run in runs))
    header = ["", *columns.values(), "same nearest images"]
    note = (
        f"In percent, on {images} test images. Nearest: of an image's ten nearest in the student's embedding, those "
        "that are among the ten nearest in the teacher's."
    )
    return TextTable("Student and teacher", header, rows, note) if rows else None


def robustness_table(runs: Sequence[Inspected]) -> TextTable | None:
    """Make the table of the accuracy on corrupted images, mean over severities; None where it was not measured."""
    models = _robust(runs)
    kinds = list(dict.fromkeys(kind for one in models.values() for kind in one.get("corrupted", {})))
    corrupted, others = bool(kinds), any("ood" in one for one in models.values())
    header = ["", "px", "no corruption", *kinds, *(["mean of corruptions", "kept, %"] if corrupted else [])]
    header += ["other images, AUROC"] if others else []
    rows = []
    for name, one in models.items():
        means = {kind: statistics.mean(values) for kind, values in one.get("corrupted", {}).items()}
        cells = [one["clean"], *(means.get(kind) for kind in kinds)]
        if corrupted:
            mean = statistics.mean(means.values()) if means else None
            cells += [mean, 100 * mean / one["clean"] if mean is not None and one["clean"] else None]
        cells += [one.get("ood")] if others else []
        rows.append([name, one["img_size"], *("" if value is None else f"{value:.2f}" for value in cells)])
    notes = ["Top-1 in percent."]
    if corrupted:
        notes.append("Each corruption at five severities, mean. Kept: mean of corruptions as a share of no corruption.")
        if len({one["img_size"] for one in models.values()}) > 1:
            notes.append("Inputs of different sizes are not corrupted equally: noise and JPEG are weaker for larger.")
    if others:
        notes.append("AUROC: how well the largest logit tells test images from images of no class (50: chance).")
    return TextTable("On corrupted and on other images", header, rows, " ".join(notes)) if rows else None


def _robust(runs: Iterable[Inspected]) -> dict[str, Robustness]:
    """Return what was measured, by the name of the model; a teacher of several students once."""
    students: dict[str, Robustness] = {}
    teachers: dict[str, Robustness] = {}
    for run in runs:
        measured = run.found.get("robustness", {})
        if "student" in measured:
            students[run.student] = measured["student"]
        if "teacher" in measured and teachers.setdefault(run.teacher, measured["teacher"]) != measured["teacher"]:
            teachers[f"{run.teacher}, of {run.student}"] = measured["teacher"]
    return {**students, **teachers}


def _robustness_figure(models: dict[str, Robustness]) -> dict[str, Any] | None:
    """Plot the accuracy over the severity of corruptions; None where it was not measured."""
    curves = {
        name: [one["clean"], *map(statistics.mean, zip(*one["corrupted"].values(), strict=True))]
        for name, one in models.items()
        if one.get("corrupted")
    }
    if not curves:
        return None
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
        for place, (name, values) in enumerate(curves.items()):
            axis.plot(range(len(values)), values, "o-", color=COLOURS[place % len(COLOURS)], label=name, lw=1.5, ms=3)
        axis.set_xlabel("severity of the corruption (0: none)")
        axis.set_xticks(range(max(map(len, curves.values()))))
        axis.set_title("top-1, %, mean over the kinds of corruption", loc="left", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
        svg = svg_of(figure)
    said = [f"{name} {', '.join(f'{value:.1f}' for value in values)}" for name, values in curves.items()]
    text = f"Top-1 at severities 0 to 5, %: {'; '.join(said)}."
    return {"title": "Accuracy on corrupted images", "svg": svg, "text": text}


def _alignment_figure(found: Inspection, of: str) -> dict[str, Any] | None:
    """Plot the alignment of the layers before and after training; None without a teacher."""
    if "alignment" not in found:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
        for axis, (when, values) in zip(axes, found["alignment"].items(), strict=True):
            matrix = np.array(values, dtype=float)
            image = axis.imshow(matrix, vmin=0, vmax=1, cmap="viridis", origin="lower")
            for row, column in np.ndindex(*matrix.shape):
                value = matrix[row, column]
                colour = "black" if value > 0.6 else "white"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
            axis.grid(False)
            axis.set_title(f"{when} training", loc="left", fontsize=9)
            axis.set_xticks(range(len(LAYERS)), LAYERS, rotation=30, ha="right")
            axis.set_yticks(range(len(LAYERS)), LAYERS)
            axis.set_xlabel("student")
        axes[0].set_ylabel("teacher")
        figure.colorbar(image, ax=axes, label="CKA")
        svg = svg_of(figure)
    said = []
    for when, values in found["alignment"].items():
        same = zip(LAYERS, np.array(values, dtype=float).diagonal(), strict=True)
        said.append(f"{when} training: " + ", ".join(f"{layer} {value:.2f}" for layer, value in same))
    title = f"How alike the layers of teacher and student are{of} (linear CKA; 1: equal up to rotation and scale)"
    return {"title": title, "svg": svg, "text": f"Of equal layers, {'; '.join(said)}."}
