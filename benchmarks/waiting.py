"""The percentage of the time in which training waits for data, read from real runs."""

import contextlib
import csv
import io
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from crossdistill.cli import main

ON_DEVICE, ONE_WORKER = "on the device", "one worker"


def waiting(cifar100: str | None) -> list[dict[str, Any]]:
    """Train without a method for a few epochs on the digits, and on CIFAR-100 where its folder is given."""
    cases: list[tuple[str, str, list[str]]] = [("demo", ON_DEVICE, ["--epochs", "4"])]
    if cifar100 is not None:
        few = ["--epochs", "2", "--data", cifar100, "--loader.max-train", "4096"]
        workers = ["--loader.resident", "false", "--loader.workers", "1"]
        cases += [("cifar100-cpu", ON_DEVICE, few), ("cifar100-cpu", ONE_WORKER, [*few, *workers])]
    return [_waited(*case) for case in cases]


def _waited(recipe: str, images: str, flags: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        plain = ["fit", "--recipe", recipe, "--method", "none", "--teacher", "null", *flags, "--out", str(run)]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main(plain)
        assert code == 0
        with open(run / "logs" / "0" / "metrics.csv") as file:
            waited = [float(r["train/wait_percent"]) for r in csv.DictReader(file) if r["train/wait_percent"]]
    return {"recipe": recipe, "images": images, "wait_percent": median(waited), "most": max(waited)}
