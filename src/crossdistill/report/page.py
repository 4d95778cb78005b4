"""Self-contained pages, written from run folders."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from crossdistill.files import write_whole
from crossdistill.report.inspected import Inspected, inspected_figures, inspected_tables
from crossdistill.report.inspection import read_inspection
from crossdistill.report.plots import run_curves
from crossdistill.report.records import RunRecord, read_run
from crossdistill.report.tables import TextTable
from crossdistill.tasks import KNN, Classification, NoLabels

PAGE_NAME = "report.html"


def write_run_page(folder: Path) -> Path:
    """Write the page of one finished run into its folder."""
    run = read_run(folder)
    student, teacher = run.metrics["student"], run.metrics.get("teacher")
    found = read_inspection(folder)
    names = f"{run.role} ({student['name']})", f"teacher ({teacher['name']})" if teacher else ""
    inspected = [] if found is None else [Inspected(*names, found)]
    taught = (
        f" taught by {teacher['name']} with {run.metrics['method']}" if teacher else ", trained on the labels alone"
    ) + ("" if "test" in student else ", without labels")
    tables = run_table(run), neighbours_table(run), cost_table(run)
    return write_page(
        folder / PAGE_NAME,
        title=f"{student['name']}{taught}",
        lead=f"{run.metrics['data']}, seed {run.metrics['seed']}, {run.metrics['training']['epochs']} epochs, "
        f"{run.metrics['training']['seconds']:.0f} s of training; training-only parameters, removed afterwards: "
        f"{run.metrics['training']['training_only_parameters']:,}.",
        tables=[*(table for table in tables if table), *inspected_tables(inspected)],
        figures=[
            {"title": "Training", "svg": run_curves(run), "text": _last_values(run)},
            *inspected_figures(inspected),
        ],
        inspected=inspected,
        samples=run.samples,
        sampled="",
        run=run,
    )


def _last_values(run: RunRecord) -> str:
    """Say in words what the curves of a run end at."""
    ends = [f"{name} from {curve[0][1]:.4g} to {curve[-1][1]:.4g}" for name, curve in run.curves.items() if curve]
    return f"Curves over the epochs: {', '.join(ends)}."


def reached(group: Sequence[RunRecord], plain: Sequence[RunRecord]) -> tuple[str, str]:
    """Describe when runs reach the best validation accuracy of the plain run with their seed.

    Returns the share of the plain run's epochs, and the minutes of training until then; "" without such runs.
    """
    best = {run.metrics["seed"]: _validation(run) for run in plain}
    found: list[tuple[float, float]] = []
    pairs = [(run, best[run.metrics["seed"]]) for run in group if best.get(run.metrics["seed"])]
    for run, curve in pairs:
        target, epochs = max(value for _, value in curve), curve[-1][0]
        own = _validation(run)
        minutes = run.metrics["training"]["seconds"] / 60
        found += [(epoch / epochs, epoch / own[-1][0] * minutes) for epoch, value in own if value >= target][:1]
    if not pairs or not found:
        return ("never", "never") if pairs else ("", "")
    some = f" ({len(found)} of {len(pairs)})" if len(found) < len(pairs) else ""
    shares, times = zip(*found, strict=True)
    return f"{statistics.mean(shares):.2f}{some}", f"{statistics.mean(times):.1f}"


def _validation(run: RunRecord) -> Sequence[tuple[float, float]]:
    return run.curves.get(Classification.monitor, [])


def run_table(run: RunRecord) -> TextTable:
    """Make the table of test scores of a run's models."""
    student, teacher = run.metrics["student"], run.metrics.get("teacher")
    if "test" not in student:
        kept = _loss_of_kept(run)
        rows = [[f"{run.role} ({student['name']})", "" if kept is None else f"{kept:.4f}"]]
        return TextTable("On the validation split, without labels", ["", "distillation loss"], rows)
    scores = {f"{run.role} ({student['name']})": student["test"]}
    if teacher is not None and "test" in teacher:
        scores[f"teacher ({teacher['name']})"] = teacher["test"]
    return accuracy_table(scores)


def _loss_of_kept(run: RunRecord) -> float | None:
    """Return the distillation loss of the epoch that was kept: that of the best neighbours where they were scored."""
    losses = dict(run.curves.get(NoLabels.monitor, []))
    neighbours = {epoch: value for epoch, value in run.curves.get(KNN, []) if epoch in losses}
    if neighbours:
        return losses[max(neighbours, key=lambda epoch: neighbours[epoch])]
    return min(losses.values(), default=None)


def neighbours_table(run: RunRecord) -> TextTable | None:
    """Make the table of what the embeddings know; None where the run has not asked for it."""
    models = ((run.role, run.metrics["student"]), ("teacher", run.metrics.get("teacher")))
    rows = [
        [f"{role} ({m['name']})", f"{m['knn']:.2f}", f"{m['linear_probe']:.2f}" if "linear_probe" in m else "-"]
        for role, m in models
        if m and "knn" in m
    ]
    header = ["", "nearest neighbours, %", "linear probe, %"]
    return TextTable("The embedding, on the test split", header, rows) if rows else None


def accuracy_table(scores: Mapping[str, Mapping[str, Any]], split: str = "test") -> TextTable:
    """Make the table of models' scores on a split; `scores` by role and name."""
    first = next(iter(scores.values()))
    columns = [("top1", "top-1, %"), ("top5", "top-5, %"), ("loss", "loss, nats"), ("ece", "calibration error, %")]
    columns += [("knn", "nearest neighbours, %"), ("linear_probe", "linear probe, %")]
    columns += [("ood", "other images told apart (AUROC), %")]
    columns = [(key, name) for key, name in columns if key in first]
    rows = [[model, *(f"{values[key]:.2f}" for key, _ in columns)] for model, values in scores.items()]
    return TextTable(f"On the {split} split", ["", *(name for _, name in columns)], rows)


def corruption_table(found: Mapping[str, Sequence[float]]) -> TextTable:
    """Make the table of the accuracy on corrupted images, by kind and severity."""
    columns = [statistics.mean(values) for values in zip(*found.values(), strict=True)]
    every = {**found, "mean": columns}
    rows = [[name, *(f"{v:.2f}" for v in (*values, statistics.mean(values)))] for name, values in every.items()]
    severities = [str(number + 1) for number in range(len(columns))]
    return TextTable("Top-1 on corrupted images, %, by severity", ["", *severities, "mean"], rows)


def cost_table(run: RunRecord) -> TextTable:
    """Make the table of sizes and speeds of student and teacher."""
    rows = [
        [
            f"{role} ({m['name']})",
            f"{m['parameters'] / 1e6:.2f}",
            f"{m['macs'] / 1e6:.1f}",
            f"{m['images_per_second']:.0f}",
            str(m["img_size"]),
        ]
        for role, m in ((run.role, run.metrics["student"]), ("teacher", run.metrics.get("teacher")))
        if m
    ]
    note = "A MAC is one multiply-accumulate (2 FLOPs). Measured where the run was trained, 32 images at a time."
    header = ["", "parameters, M", "MMACs per image", "images per second", "px"]
    return TextTable("Size and speed", header, rows, note)


def write_page(path: Path, *, run: RunRecord, **content: Any) -> Path:
    """Write a page, with the settings of one run at its end."""
    template = (files("crossdistill.report") / "page.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    made = {name: value for name, value in asdict(run.environment).items() if name != "inputs"}
    write_whole(
        path,
        page.render(
            **content,
            role=run.role,
            config=run.settings,
            environment=", ".join(f"{name} {value}" for name, value in made.items()),
        ),
    )
    return path
