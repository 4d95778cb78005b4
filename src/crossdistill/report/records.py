"""The records of a finished run, read back from its folder. Reports know nothing else of a run."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import yaml
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from crossdistill.errors import UserError

Curve = list[tuple[float, float]]


class Scores(TypedDict):
    """Scores on the test split."""

    top1: float
    loss: float
    ece: float
    images: int
    top5: NotRequired[float]


class ModelRecord(TypedDict):
    """A model and its cost."""

    name: str
    parameters: int
    macs: int
    images_per_second: float
    img_size: int


class ScoredModel(ModelRecord):
    """A model with its scores."""

    test: Scores


class TeacherRecord(ModelRecord):
    """A teacher; without scores where it has other classes, or none."""

    test: NotRequired[Scores]


class TrainingRecord(TypedDict):
    """How a run was trained."""

    seconds: float
    epochs: int
    training_only_parameters: int
    global_batch: int


class Metrics(TypedDict):
    """The content of metrics.json."""

    role: NotRequired[str]
    method: str
    seed: int
    data: str
    training: TrainingRecord
    student: ScoredModel
    teacher: NotRequired[TeacherRecord]


@dataclass(frozen=True)
class RunRecord:
    """A finished run: `curves` by logged name, as (epochs, value)."""

    folder: Path
    config: dict[str, Any]
    metrics: Mapping[str, Any]
    environment: dict[str, Any]
    curves: dict[str, Curve]
    samples: list[dict[str, Any]]

    @property
    def top1(self) -> float:
        """The student's accuracy on the test split, percent."""
        return float(self.metrics["student"]["test"]["top1"])

    @property
    def role(self) -> str:
        """What the trained model is called: student or teacher."""
        return str(self.metrics.get("role", "student"))


def read_metrics(folder: Path) -> Metrics:
    """Read the metrics of a finished run. Raises UserError for a file that is missing, damaged or incomplete."""
    path = folder / "metrics.json"
    try:
        return TypeAdapter(Metrics).validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{str(folder)!r} holds no finished run: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{str(path)!r} is damaged: {place + ': ' if place else ''}{first['msg']}") from error


def read_run(folder: Path) -> RunRecord:
    """Read a finished run. Raises UserError for a folder that holds none."""
    metrics = read_metrics(folder)
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{str(folder)!r} holds no finished run: {error}") from error
    return RunRecord(folder, config, dict(metrics), environment, _read_curves(folder, config["epochs"]), samples)


def _read_curves(folder: Path, epochs: int) -> dict[str, Curve]:
    attempts = sorted(folder.glob("logs/*/metrics.csv"), key=lambda path: int(path.parent.name))
    rows: list[dict[str, str]] = []
    for path in attempts:
        with path.open(newline="", encoding="utf-8") as file:
            fresh = list(csv.DictReader(file))
        if fresh:
            first = int(fresh[0]["step"])
            # What a resumed run repeats replaces what the interrupted one had logged.
            rows = [row for row in rows if int(row["step"]) < first] + fresh
    last = max((int(row["step"]) for row in rows), default=0) + 1
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "epoch") and value:
                curves.setdefault(name, []).append(((int(row["step"]) + 1) / last * epochs, float(value)))
    return curves
