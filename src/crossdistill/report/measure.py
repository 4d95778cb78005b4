"""What runs are compared by: top-1 on the test split, or without labels the nearest neighbours of the embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

from crossdistill.errors import UserError
from crossdistill.report.records import RunRecord, ScoredModel
from crossdistill.tasks import KNN, Classification


@dataclass(frozen=True)
class Measure:
    """A score in percent: its name, and that of its curve on held-out images."""

    name: str
    curve: str


TOP1 = Measure("top-1", Classification.monitor)
NEIGHBOURS = Measure("accuracy by nearest neighbours", KNN)


def measure_of(run: RunRecord) -> Measure | None:
    """Return what a run can be compared by; None for a teacher, or a run without labels that was not scored."""
    if run.role != "student":
        return None
    student = run.metrics["student"]
    return TOP1 if "test" in student else NEIGHBOURS if "knn" in student else None


def measure_of_all(runs: Sequence[RunRecord]) -> Measure:
    """Return what all runs can be compared by; top-1 for no run. Raises UserError where there is nothing."""
    found = [measure_of(run) for run in runs]
    shared = TOP1 if not found or TOP1 in found else NEIGHBOURS
    for run, own in zip(runs, found, strict=True):
        if own != shared:
            raise UserError(f"{str(run.folder)!r} has no score to compare by {shared.name}")
    return shared


def score(run: RunRecord) -> float:
    """Return the student's score on the test split, percent. Raises UserError for a run without one."""
    found = _score(run.metrics["student"], TOP1 if run.role != "student" else measure_of(run))
    if found is None:
        raise UserError(f"{str(run.folder)!r} was trained without labels, so it has no accuracy")
    return found


def teacher_score(run: RunRecord) -> float | None:
    """Return the teacher's score on the test split, of the kind of the student's, percent; None where it has none."""
    teacher = run.metrics.get("teacher")
    return None if teacher is None else _score(teacher, measure_of(run))


def _score(model: ScoredModel, measure: Measure | None) -> float | None:
    if measure == NEIGHBOURS:
        return model.get("knn")
    scores = model.get("test")
    return None if scores is None else scores["top1"]
