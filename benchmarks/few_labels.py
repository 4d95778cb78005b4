"""`python -m benchmarks.few_labels` measures what a student learns without labels, and what that is worth with labels.

For each seed: a student learns the embedding of a teacher by RSD, from images without labels; its embedding is scored
by nearest neighbours and by a linear probe; then it is trained further with a tenth of the labels and with all of them.
Beside it the same student is trained from random weights, for as many steps with labels, and for as many steps in all;
and, with `--unlabelled`, by a teacher whose classifier was fitted to a tenth of the labels, on all images, for as many
steps in all.
Every run is a folder of `--out`; the same command continues where it was stopped, and prints a table as Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.loaders import ViewSampler

EPOCHS = {"10": 40, "100": 10}
"""Epochs of the training with labels, by the percentage of the labels."""
_BODY_EPOCHS = 10
_BATCH = 64
KINDS = {
    "scratch": "from random weights, as many steps with labels",
    "equal": "from random weights, as many steps in all",
    "rsd": "from the embedding learned without labels",
    "taught": "taught by kd on all images, by a classifier fitted to these labels, as many steps in all",
}
SCORES = {"knn": "20 nearest neighbours", "linear_probe": "linear probe"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_labels", description=__doc__)
    parser.add_argument("--data", required=True, help="A data set with labels.")
    parser.add_argument("--teacher", required=True, help="Name of the teacher's model.")
    parser.add_argument("--teacher-checkpoint", required=True, help="Its weights.")
    parser.add_argument("--unlabelled", help="The same training images, as a folder that is read without labels.")
    parser.add_argument("--student", default="edgenext_xx_small")
    parser.add_argument("--img-size", default="96")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("runs/few-labels"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    images = len(load_data(given.data, LoaderConfig()).train)
    for seed in (int(text) for text in given.seeds.split(",")):
        _measure(given, seed, images)
    print("\n".join(_markdown(results(given.out))))


def _measure(given: argparse.Namespace, seed: int, images: int) -> None:
    common = ["--data", given.data, "--img-size", given.img_size, "--student", given.student, "--seed", str(seed)]
    common += ["--loader.batch-size", str(_BATCH), "--engine.threads", "1"]
    teacher = ["--teacher", given.teacher, "--teacher-checkpoint", given.teacher_checkpoint, "--cache", "auto"]
    body = given.out / f"rsd-s{seed}"
    views = ["--loader.labels", "none", "--loader.views", "4", "--epochs", str(_BODY_EPOCHS)]
    _fit(body, *common, *teacher, "--method", "rsd", *views)
    scored = body.with_suffix(".json")
    if not scored.exists():
        flags = ["--loader.labels", "classes", "--knn", "--linear-probe", "--json"]
        scored.write_text(_run("eval", str(body), *flags), encoding="utf-8")
    start = ["--model.student-checkpoint", str(body), "--model.new-head", "true"]
    for part, epochs in EPOCHS.items():
        few = round(images * int(part) / 100)
        own = [*common, "--method", "none", "--loader.max-train", str(few)]
        _fit(given.out / f"rsd-s{seed}-{part}", *own, *start, "--epochs", str(epochs))
        _fit(given.out / f"scratch-s{seed}-{part}", *own, "--epochs", str(epochs))
        if given.unlabelled and part == "10":
            _teach(given, seed, images, few)
        more = round(_BODY_EPOCHS * _batches(images) / _batches(few))
        _fit(given.out / f"equal-s{seed}-{part}", *own, "--epochs", str(epochs + more))


def _batches(images: int, batch: int = _BATCH) -> int:
    """Return the steps of an epoch."""
    return ViewSampler(images, batch, seed=0).batches


def _teach(given: argparse.Namespace, seed: int, images: int, few: int) -> None:
    """Fit a classifier of the teacher to a tenth of the labels, and train a student by it on all images."""
    common = ["--data", given.data, "--img-size", given.img_size, "--loader.max-train", str(few)]
    common += ["--loader.batch-size", str(_BATCH), "--engine.threads", "1"]
    probed = given.out / "teacher-10"
    if not (probed / "metrics.json").exists():
        teacher = ["--teacher", given.teacher, "--teacher-checkpoint", given.teacher_checkpoint]
        _run("teacher", "--probe", *teacher, *common, "--out", str(probed))
    steps = _BODY_EPOCHS * _batches(images) + EPOCHS["10"] * _batches(few)
    epochs = round(steps / _batches(images, _BATCH // 2))  # half of each batch has labels
    student = ["--student", given.student, "--teacher-checkpoint", str(probed), "--method", "kd", "--seed", str(seed)]
    mixed = ["--loader.unlabelled", given.unlabelled, "--cache", "auto", "--loader.views", "4", "--epochs", str(epochs)]
    _fit(given.out / f"taught-s{seed}-10", *common, *student, *mixed)


def _fit(out: Path, *words: str) -> None:
    if not (out / "metrics.json").exists():
        _run("fit", *words, "--out", str(out), *(["--resume"] if (out / "config.yaml").exists() else []))


def _run(*words: str) -> str:
    command = [sys.executable, "-m", "crossdistill", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def results(out: Path) -> dict[str, list[float]]:
    """Read the finished runs: top-1 on the test split or a score of the embedding in percent, by what it is of."""
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        for part in EPOCHS:
            scores = [
                _read(path)["student"]["test"]["top1"] for path in sorted(out.glob(f"{kind}-s*-{part}/metrics.json"))
            ]
            found[f"{kind} {part}"] = scores
    for name in SCORES:
        found[name] = [_read(path)[name] for path in sorted(out.glob("rsd-s*.json"))]
    return {name: values for name, values in found.items() if values}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _markdown(table: dict[str, list[float]]) -> list[str]:
    lines = ["| | mean | ± | seeds |", "| --- | --- | --- | --- |"]
    for name, values in table.items():
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        seeds = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {_title(name)} | {statistics.mean(values):.2f} | {spread} | {seeds} |")
    return lines


def _title(name: str) -> str:
    if name in SCORES:
        return f"embedding learned without labels, {SCORES[name]}"
    kind, _, part = name.partition(" ")
    return f"{part}% of the labels, {KINDS[kind]}"


if __name__ == "__main__":
    main()
