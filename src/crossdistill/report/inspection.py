"""The file that `crossdistill inspect` writes into a run's folder."""

from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict

from crossdistill.config.validation import Percent
from crossdistill.errors import UserError
from crossdistill.report.records import read_record

INSPECTION_NAME = "inspection.json"


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


class Robustness(TypedDict):
    """Accuracy of a model without and with corruptions of the images, and how it tells other images apart, percent."""

    img_size: str
    """Of the input, in pixels."""
    clean: Percent
    corrupted: NotRequired[dict[str, list[Percent]]]
    """Top-1 at the severities from 1 to 5, by the name of the corruption."""
    ood: NotRequired[Percent]
    """Area under the ROC curve by which the largest logit tells test images from images of no class."""


class Inspection(TypedDict):
    """What was found on the images of the test split."""

    images: int
    alignment: NotRequired[Alignment]
    agreement: NotRequired[Agreement]
    shared_neighbours: NotRequired[float]
    """Percent of an image's ten nearest ones in the student's embedding that are among the teacher's ten."""
    confusions: list[Confusion]
    neighbours: list[Neighbours]
    robustness: NotRequired[dict[str, Robustness]]
    """By "student" and, where it has the same classes, "teacher"."""


def read_inspection(folder: Path) -> Inspection | None:
    """Read what was found on a run; None where it was not inspected. Raises UserError for a damaged file."""
    path = folder / INSPECTION_NAME
    if not path.exists():
        return None
    try:
        found: Inspection = read_record(path, Inspection)
    except UserError as error:
        raise UserError(f"{error}; remove it, or run `crossdistill inspect` again") from error
    return found
