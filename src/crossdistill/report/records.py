"""What a run's folder says, read back. Reports know nothing else of a run."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossdistill.errors import UserError

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class RunRecord:
    """A finished run: `curves` by logged name, as (epochs, value)."""

    folder: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    environment: dict[str, Any]
    curves: dict[str, Curve]
    samples: list[dict[str, Any]]

    @property
    def top1(self) -> float:
        """The student's accuracy on the test split, percent."""
        return float(self.metrics["student"]["test"]["top1"])


def read_run(folder: Path) -> RunRecord:
    """Read a finished run. Raises UserError for a folder that holds none."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        config = yaml.safe_load((folder / "config.yaml").read_text())
        environment = json.loads((folder / "environment.json").read_text())
        samples = json.loads((folder / "samples.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder)!r} holds no finished run: {error}") from error
    return RunRecord(folder, config, metrics, environment, _read_curves(folder, config["epochs"]), samples)


def _read_curves(folder: Path, epochs: int) -> dict[str, Curve]:
    attempts = sorted(folder.glob("logs/*/metrics.csv"), key=lambda path: int(path.parent.name))
    rows: list[dict[str, str]] = []
    for path in attempts:
        with path.open(newline="") as file:
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
