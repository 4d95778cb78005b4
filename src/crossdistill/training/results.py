"""The results of a comparison in one table, and the runs of it that failed."""

import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from crossdistill.errors import UserError
from crossdistill.files import make_folder, read_text, write_whole
from crossdistill.report.records import CONFIG_NAME, FAILURE_NAME, METRICS_NAME, Metrics, read_failure, read_record
from crossdistill.training.grid import Cell

RESULTS_NAME = "results.sqlite"
_COLUMNS = {
    "folder": "TEXT PRIMARY KEY",
    "student": "TEXT",
    "teacher": "TEXT",
    "teacher_model": "TEXT",
    "method": "TEXT",
    "setting": "TEXT",
    "seed": "INTEGER",
    "state": "TEXT",
    "reason": "TEXT",
    "top1": "REAL",
    "top5": "REAL",
    "loss": "REAL",
    "ece": "REAL",
    "knn": "REAL",
    "linear_probe": "REAL",
    "teacher_top1": "REAL",
    "teacher_knn": "REAL",
    "epochs": "INTEGER",
    "seconds": "REAL",
    "peak_memory": "INTEGER",
    "training_only_parameters": "INTEGER",
    "parameters": "INTEGER",
    "macs": "INTEGER",
    "config": "TEXT",
}


class Failures:
    """The runs of a comparison that have failed since a time; earlier ones are tried again."""

    def __init__(self, out: Path, since: float) -> None:
        self.out = out
        self.since = since

    def of(self, folder: str) -> str | None:
        """Return why a run failed; None where it did not, or where it is tried again."""
        failure = read_failure(self.out / folder)
        return failure["reason"] if failure is not None and failure["time"] >= self.since else None

    def add(self, folder: str, reason: str, trace: str = "") -> None:
        """Record that a run failed, with the traceback of an error that is not the user's."""
        make_folder(self.out)
        (self.out / folder).mkdir(exist_ok=True)
        failure = {"reason": reason, "time": time.time()} | ({"traceback": trace} if trace else {})
        write_whole(self.out / folder / FAILURE_NAME, json.dumps(failure, indent=2))

    def forget(self, folder: str) -> None:
        """Remove the record of an earlier failure."""
        (self.out / folder / FAILURE_NAME).unlink(missing_ok=True)


def write_results(out: Path, cells: Sequence[Cell], failures: Failures) -> None:
    """Write the SQLite file of a comparison: its table `runs` has a row for each run that is finished or failed.

    The table is made of the folders of the runs, and replaced as a whole. Runs of earlier commands in the same folder
    keep their rows.
    """
    rows = {cell.folder: row for cell in cells if (row := _row(out, cell, failures))}
    if not rows:
        return
    known = {cell.folder for cell in cells}
    earlier = {row["folder"]: row for row in _stored(out / RESULTS_NAME)}
    rows |= {name: row for name, row in earlier.items() if name not in known and (out / name / METRICS_NAME).exists()}
    # In memory, since SQLite needs locks that a shared disk may not have.
    with closing(sqlite3.connect(":memory:")) as table:
        with table:
            table.execute(f"CREATE TABLE runs ({', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())})")
            for _, row in sorted(rows.items()):
                table.execute(
                    f"INSERT INTO runs ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
                )
        content = table.serialize()
    try:
        write_whole(out / RESULTS_NAME, content)
    except OSError as error:
        raise UserError(f"cannot write {str(out / RESULTS_NAME)!r}: {error.strerror or error}") from error


def _stored(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier table; none where there is none, or one that cannot be read."""
    if not path.is_file():
        return []
    try:
        with closing(sqlite3.connect(path)) as table:
            present = {row[1] for row in table.execute("PRAGMA table_info(runs)")}
            # A table that an earlier version wrote has fewer columns.
            names = [name for name in _COLUMNS if name in present]
            found = table.execute(f"SELECT {', '.join(names)} FROM runs").fetchall()
    except sqlite3.Error:
        return []
    rows = [dict(zip(names, row, strict=True)) for row in found]
    return [row for row in rows if isinstance(row.get("folder"), str)]


def _row(out: Path, cell: Cell, failures: Failures) -> dict[str, Any] | None:
    row: dict[str, Any] = {
        "folder": cell.folder,
        "student": cell.student or cell.config.student,
        "teacher": cell.teacher or None,
        "method": cell.variant.label,
        "setting": cell.setting or None,
        "seed": cell.seed,
    }
    if (out / cell.folder / METRICS_NAME).exists():
        try:
            metrics: Metrics = read_record(out / cell.folder / METRICS_NAME, Metrics)
            settings = read_text(out / cell.folder / CONFIG_NAME)
        except (UserError, OSError, ValueError) as error:
            # The others are still finished.
            return {**row, "state": "failed", "reason": str(error)}
        return {**row, "state": "finished", **_numbers(metrics), "config": settings}
    reason = failures.of(cell.folder)
    return None if reason is None else {**row, "state": "failed", "reason": reason}


def _numbers(metrics: Metrics) -> dict[str, Any]:
    student, training, teacher = metrics["student"], metrics["training"], metrics.get("teacher")
    scores = student.get("test", {})
    found: dict[str, Any] = {name: scores.get(name) for name in ("top1", "top5", "loss", "ece")}
    if teacher is not None:
        found |= {"teacher_model": teacher["name"], "teacher_top1": teacher.get("test", {}).get("top1")}
        found["teacher_knn"] = teacher.get("knn")
    found |= {name: student.get(name) for name in ("knn", "linear_probe")}
    found |= {name: training[name] for name in ("epochs", "seconds", "training_only_parameters")}
    found["peak_memory"] = training.get("peak_memory")
    return {**found, "parameters": student["parameters"], "macs": student["macs"]}
