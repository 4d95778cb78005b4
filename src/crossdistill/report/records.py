"""The records of a run, read back from its folder. Reports know nothing else of a run."""

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from crossdistill.config.files import read_yaml
from crossdistill.config.validation import Count, Percent, Unsigned, first_problem
from crossdistill.data.split_list import read_split_list
from crossdistill.errors import UserError, kind_and_line
from crossdistill.evaluation.predictions import Predictions, read_predictions
from crossdistill.files import open_plain, read_plain, read_text
from crossdistill.image_size import OptionalSizeText

CONFIG_NAME = "config.yaml"
ENVIRONMENT_NAME = "environment.json"
FAILURE_NAME = "failed.json"
METRICS_NAME = "metrics.json"
SAMPLES_NAME = "samples.json"

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Environment:
    """What a run was started with: versions, machine, number of processes, and digests of its inputs by name."""

    crossdistill: str
    python: str
    torch: str
    timm: str
    lightning: str
    platform: str
    device: str
    threads: int
    processes: int
    inputs: dict[str, str]


class Scores(TypedDict):
    """Scores on the test split."""

    top1: Percent
    loss: Annotated[float, Field(ge=0)]
    ece: Percent
    images: Count
    top5: NotRequired[Percent]


class ModelRecord(TypedDict):
    """A model and its cost."""

    name: str
    parameters: Count
    macs: Count
    images_per_second: Unsigned
    img_size: OptionalSizeText


class EmbeddingScores(TypedDict):
    """What the embedding knows: its accuracy on the test split, percent."""

    knn: NotRequired[Percent]
    """By nearest neighbours."""
    linear_probe: NotRequired[Percent]
    """By a linear classifier."""


class ScoredModel(ModelRecord, EmbeddingScores):
    """A model with its scores; without them where the data has no labels, or where its classes are not those of it."""

    test: NotRequired[Scores]


class TrainingRecord(TypedDict):
    """How a run was trained."""

    seconds: Unsigned
    epochs: Count
    training_only_parameters: Count
    global_batch: Count
    peak_memory: NotRequired[Count | None]
    """Bytes that training took at most: of the first GPU, or of the process."""


class Metrics(TypedDict):
    """The content of metrics.json."""

    role: NotRequired[str]
    method: str
    seed: int
    data: str
    training: TrainingRecord
    student: ScoredModel
    teacher: NotRequired[ScoredModel]


Prediction = TypedDict("Prediction", {"class": str, "probability": float})
"""The most probable class of an image, and its probability."""


class Sample(TypedDict):
    """A test image with the predictions of the models."""

    image: str
    """PNG as base64."""
    truth: str
    right: bool
    """Whether the student's prediction is correct."""
    student: Prediction
    teacher: NotRequired[Prediction]


class Failure(TypedDict):
    """The content of failed.json, of a run of a comparison. `time` is in seconds since 1970."""

    reason: str
    time: float
    traceback: NotRequired[str]


@dataclass(frozen=True)
class RunRecord:
    """A finished run: `settings` as the text of config.yaml, `curves` by logged name, as (epochs, value)."""

    folder: Path
    settings: str
    metrics: Metrics
    environment: Environment
    curves: dict[str, Curve]
    samples: list[Sample]

    def predictions(self) -> Predictions | None:
        """Read the predictions on the test split; None where there are none. Raises UserError for a damaged file."""
        scores = self.metrics["student"].get("test")
        return None if scores is None else read_predictions(self.folder, scores["images"])

    def test_images(self) -> str:
        """Return a digest of what is known of the test images: of labels and contents, and of files by their paths.

        Raises UserError for a damaged split.json.
        """
        listed = read_split_list(self.folder)
        digests = {name: value for name, value in self.environment.inputs.items() if name.startswith("test ")}
        known = [digests, None if listed is None else listed.images.get("test")]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    @property
    def role(self) -> str:
        """What the trained model is called: student or teacher."""
        return self.metrics.get("role", "student")


def read_record(path: Path, kind: Any) -> Any:
    """Read a JSON file of a run as a value of a type. Raises UserError for a file that is missing or damaged."""
    try:
        return TypeAdapter(kind).validate_json(read_plain(path))
    except FileNotFoundError as error:
        raise UserError(f"{str(path.parent)!r} is not a finished run: {path.name} is missing") from error
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise UserError(f"{str(path)!r} is damaged: {first_problem(error)}") from error


def read_environment(folder: Path) -> Environment:
    """Read what a run was started with. Raises UserError for a file that is missing or damaged."""
    environment: Environment = read_record(folder / ENVIRONMENT_NAME, Environment)
    return environment


def read_failure(folder: Path) -> Failure | None:
    """Read why a run of a comparison failed; None where it did not, or where the file is damaged."""
    if not (folder / FAILURE_NAME).exists():
        return None
    try:
        failure: Failure = read_record(folder / FAILURE_NAME, Failure)
    except UserError:
        return None
    return failure


def read_run(folder: Path) -> RunRecord:
    """Read a finished run. Raises UserError for a folder that is not one, or is damaged."""
    metrics: Metrics = read_record(folder / METRICS_NAME, Metrics)
    return RunRecord(
        folder=folder,
        settings=_read_settings(folder / CONFIG_NAME),
        metrics=metrics,
        environment=read_environment(folder),
        curves=_read_curves(folder, metrics["training"]["epochs"]),
        samples=read_record(folder / SAMPLES_NAME, list[Sample]),
    )


def _read_settings(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{str(path.parent)!r} is not a finished run: {path.name} is missing")
    if not read_yaml(path):
        raise UserError(f"{str(path)!r} is damaged: it is empty")
    return read_text(path)


def _read_curves(folder: Path, epochs: int) -> dict[str, Curve]:
    attempts = [path for path in folder.glob("logs/*/metrics.csv") if path.parent.name.isdecimal()]
    rows: list[tuple[int, dict[str, float]]] = []
    for path in sorted(attempts, key=lambda path: int(path.parent.name)):
        fresh = _read_log(path)
        if fresh:
            # What a resumed run repeats replaces what the interrupted one had logged.
            rows = [row for row in rows if row[0] < fresh[0][0]] + fresh
    last = max((step for step, _ in rows), default=0) + 1
    curves: dict[str, Curve] = {}
    for step, values in rows:
        for name, value in values.items():
            curves.setdefault(name, []).append(((step + 1) / last * epochs, value))
    return curves


def _read_log(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Read the rows of a log: step from 0, and values by name. Raises UserError for a damaged one."""
    rows = []
    try:
        with open_plain(path) as file:
            for row in csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline="")):
                step = int(row["step"])
                if step < 0:
                    raise ValueError(f"step {step}")
                numbers = {name: value for name, value in row.items() if name not in ("step", "epoch") and value}
                rows.append((step, {name: float(value) for name, value in numbers.items()}))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{str(path)!r} is damaged: row {len(rows) + 1} ({kind_and_line(error)})") from error
    return rows
