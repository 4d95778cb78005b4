"""The file that `crossdistill inspect` writes into a run's folder, and its part of the page."""

from pathlib import Path
from typing import Any, NotRequired

import matplotlib.pyplot as plt
import numpy as np
from typing_extensions import TypedDict

from crossdistill.report.plots import STYLE, svg_of
from crossdistill.report.records import read_record
from crossdistill.report.tables import TextTable

INSPECTION_NAME = "inspection.json"
LAYERS = ("stage 1", "stage 2", "stage 3", "stage 4", "embedding")


class Alignment(TypedDict):
    """CKA of each layer of the teacher (rows) with each of the student (columns), before training and after."""

    before: list[list[float | None]]
    after: list[list[float | None]]


class Agreement(TypedDict):
    """How often student and teacher predict the same class, and which of them is right, in percent of the images."""

    same: float
    both_right: float
    student_only: float
    teacher_only: float
    both_wrong: float


class Picture(TypedDict):
    """A small PNG as base64, with a caption."""

    image: str
    caption: str


class Confusion(TypedDict):
    """A pair of classes that the student confuses, with a picture and where both models find the predicted class."""

    truth: str
    predicted: str
    count: int
    """Test images of the first class that the student takes for the second."""
    teacher_count: NotRequired[int]
    pictures: list[Picture]


class Neighbours(TypedDict):
    """An image, and its nearest ones in an embedding."""

    image: Picture
    student: list[Picture]
    teacher: NotRequired[list[Picture]]


class Inspection(TypedDict):
    """What was found on the images of the test split."""

    images: int
    alignment: NotRequired[Alignment]
    agreement: NotRequired[Agreement]
    shared_neighbours: NotRequired[float]
    """Percent of an image's ten nearest ones in the student's embedding that are among the teacher's ten."""
    confusions: list[Confusion]
    neighbours: list[Neighbours]


def read_inspection(folder: Path) -> Inspection | None:
    """Read what was found on a run; None where it was not inspected. Raises UserError for a damaged file."""
    path = folder / INSPECTION_NAME
    if not path.exists():
        return None
    found: Inspection = read_record(path, Inspection)
    return found


def agreement_table(found: Inspection) -> TextTable | None:
    """Make the table of how far student and teacher agree; None without a teacher of the same classes."""
    rows = []
    if "agreement" in found:
        names = {"same": "the same class", "both_right": "both right", "student_only": "only the student right"}
        names |= {"teacher_only": "only the teacher right", "both_wrong": "both wrong"}
        values: dict[str, Any] = {**found["agreement"]}
        rows += [[text, f"{values[name]:.2f}"] for name, text in names.items()]
    if "shared_neighbours" in found:
        rows.append(["the same ten nearest images in the embedding", f"{found['shared_neighbours']:.2f}"])
    if not rows:
        return None
    return TextTable("Student and teacher", ["", "of the images, %"], rows, f"On {found['images']:,} test images.")


def alignment_figure(found: Inspection) -> dict[str, Any] | None:
    """Plot the alignment of the layers before and after training: title, SVG, text; None without a teacher."""
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
    title = "How alike the layers of teacher and student are (linear CKA; 1: equal up to rotation and scale)"
    return {"title": title, "svg": svg, "text": f"Of equal layers, {'; '.join(said)}."}
