"""Self-contained pages, written from run folders."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from crossdistill.files import write_whole
from crossdistill.report.plots import comparison, run_curves
from crossdistill.report.records import RunRecord, read_run
from crossdistill.report.tables import TextTable
from crossdistill.tasks import Classification, NoLabels

PAGE_NAME = "report.html"


def write_run_page(folder: Path) -> Path:
    """Write the page of one finished run into its folder."""
    run = read_run(folder)
    student, teacher = run.metrics["student"], run.metrics.get("teacher")
    taught = (
        f" taught by {teacher['name']} with {run.metrics['method']}" if teacher else ", trained on the labels alone"
    ) + ("" if "test" in student else ", without labels")
    return _write(
        folder / PAGE_NAME,
        title=f"{student['name']}{taught}",
        lead=f"{run.metrics['data']}, seed {run.metrics['seed']}, {run.metrics['training']['epochs']} epochs, "
        f"{run.metrics['training']['seconds']:.0f} s of training; training-only parameters, removed afterwards: "
        f"{run.metrics['training']['training_only_parameters']:,}.",
        tables=[table for table in (run_table(run), neighbours_table(run), cost_table(run)) if table],
        figures=[{"title": "Training", "svg": run_curves(run)}],
        samples=run.samples,
        sampled="",
        run=run,
    )


def write_comparison_page(folder: Path, groups: dict[str, list[RunRecord]]) -> Path:
    """Write the page that compares methods, each with its runs over the seeds, into `folder`."""
    runs = [run for group in groups.values() for run in group]
    # One run is shown in detail: the first seed of the last method.
    taught = next((group[0] for group in reversed(groups.values()) if "teacher" in group[0].metrics), None)
    shown = taught or runs[0]
    student = shown.metrics["student"]["name"]
    teacher = shown.metrics["teacher"]["name"] if taught else None
    return _write(
        folder / PAGE_NAME,
        title=f"{teacher} teaches {student}" if teacher else student,
        lead=f"{shown.metrics['data']}, one recipe and data order, {shown.metrics['training']['epochs']} epochs.",
        tables=[comparison_table(groups), cost_table(shown)],
        figures=[
            {
                "title": "Methods",
                "svg": comparison(groups, teacher_top1(taught)),
            }
        ],
        samples=shown.samples,
        sampled=f" by {shown.metrics['method']}, seed {shown.metrics['seed']}",
        run=shown,
    )


def comparison_table(groups: dict[str, list[RunRecord]]) -> TextTable:
    """Make the table of test accuracy by method: mean and sample standard deviation over seeds, gain over `none`."""
    runs = [run for group in groups.values() for run in group]
    rows = []
    taught = next((run for run in runs if "teacher" in run.metrics), None)
    if taught is not None and (top1 := teacher_top1(taught)) is not None:
        rows.append([f"teacher ({taught.metrics['teacher']['name']})", f"{top1:.2f}", "", "", "", "1", ""])
    base = statistics.mean(run.top1 for run in groups["none"]) if "none" in groups else None
    for method, group in groups.items():
        tops = [run.top1 for run in group]
        mean = statistics.mean(tops)
        spread = f"± {statistics.stdev(tops):.2f}" if len(tops) > 1 else ""
        gain = "" if base is None or method == "none" else f"{mean - base:+.2f}"
        extra = f"{group[0].metrics['training']['training_only_parameters']:,}"
        reached = "" if method == "none" else _reached(group, groups.get("none", []))
        rows.append([method, f"{mean:.2f}", spread, gain, reached, str(len(tops)), extra])
    note = (
        "± is the sample standard deviation over seeds; a gain that is smaller means little. The time is the fraction "
        "of the epochs after which a run has the best validation accuracy of none with the same seed, on average."
    )
    header = ["", "mean", "spread", "gain over none", "time to none", "runs", "extra params"]
    return TextTable("Top-1 on the test split, %", header, rows, note)


def _reached(group: Sequence[RunRecord], plain: Sequence[RunRecord]) -> str:
    """Describe when runs reach the best validation accuracy of the plain run with their seed."""
    best = {run.metrics["seed"]: _validation(run) for run in plain}
    fractions = []
    pairs = [(run, best[run.metrics["seed"]]) for run in group if best.get(run.metrics["seed"])]
    for run, curve in pairs:
        target, epochs = max(value for _, value in curve), curve[-1][0]
        fractions += [epoch / epochs for epoch, value in _validation(run) if value >= target][:1]
    if not pairs or not fractions:
        return "never" if pairs else ""
    some = f" ({len(fractions)} of {len(pairs)})" if len(fractions) < len(pairs) else ""
    return f"{statistics.mean(fractions):.2f}{some}"


def _validation(run: RunRecord) -> Sequence[tuple[float, float]]:
    return run.curves.get(Classification.monitor, [])


def teacher_top1(run: RunRecord | None) -> float | None:
    """Return the teacher's accuracy on the test split, in percent; None where it has none."""
    scores = None if run is None else run.metrics.get("teacher", {}).get("test")
    return None if scores is None else float(scores["top1"])


def run_table(run: RunRecord) -> TextTable:
    """Make the table of test scores of a run's models."""
    student, teacher = run.metrics["student"], run.metrics.get("teacher")
    if "test" not in student:
        losses = [value for _, value in run.curves.get(NoLabels.monitor, [])]
        rows = [[f"{run.role} ({student['name']})", f"{min(losses):.4f}" if losses else ""]]
        return TextTable("On the validation split, without labels", ["", "distillation loss"], rows)
    scores = {f"{run.role} ({student['name']})": student["test"]}
    if teacher is not None and "test" in teacher:
        scores[f"teacher ({teacher['name']})"] = teacher["test"]
    return accuracy_table(scores)


def neighbours_table(run: RunRecord) -> TextTable | None:
    """Make the table of what the embeddings know, by nearest neighbours; None where the run has not asked for it."""
    models = ((run.role, run.metrics["student"]), ("teacher", run.metrics.get("teacher")))
    rows = [[f"{role} ({m['name']})", f"{m['knn']:.2f}"] for role, m in models if m and "knn" in m]
    return TextTable("The embedding, by nearest neighbours", ["", "test split, %"], rows) if rows else None


def accuracy_table(scores: Mapping[str, Mapping[str, Any]], split: str = "test") -> TextTable:
    """Make the table of models' scores on a split; `scores` by role and name."""
    first = next(iter(scores.values()))
    columns = [("top1", "top-1, %"), ("top5", "top-5, %"), ("loss", "loss, nats"), ("ece", "calibration error, %")]
    columns += [("knn", "nearest neighbours, %"), ("linear_probe", "linear probe, %")]
    columns = [(key, name) for key, name in columns if key in first]
    rows = [[model, *(f"{values[key]:.2f}" for key, _ in columns)] for model, values in scores.items()]
    return TextTable(f"On the {split} split", ["", *(name for _, name in columns)], rows)


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


def _write(path: Path, *, run: RunRecord, **content: Any) -> Path:
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
