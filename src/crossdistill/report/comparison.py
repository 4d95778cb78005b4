"""The page and the table of a comparison, made of groups of runs."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from crossdistill.config.yaml_text import load_yaml
from crossdistill.errors import UserError
from crossdistill.report.class_plots import class_gains, reliability
from crossdistill.report.groups import Group, teacher_names
from crossdistill.report.inspected import Inspected, inspected_figures, inspected_tables
from crossdistill.report.inspection import Inspection, read_inspection
from crossdistill.report.measure import NEIGHBOURS, measure_of_all, score, teacher_score
from crossdistill.report.page import (
    PAGE_NAME,
    cost_table,
    reached,
    write_page,
)
from crossdistill.report.plots import comparison
from crossdistill.report.records import RunRecord, ScoredModel
from crossdistill.report.statistics import gain
from crossdistill.report.sweep import sweep_plot
from crossdistill.report.tables import TextTable

_COSTS = ("minutes", "memory, MiB", "params, M", "MMACs", "images/s", "extra params")
_COSTS_NOTE = (
    "Minutes are those of training, without writing a teacher cache; memory is the most that it took, on the first GPU "
    "or without one of the whole process; images/s are those of the student, 32 at a time. Other processes (--jobs) "
    "make minutes and images/s worse."
)


def write_comparison_page(folder: Path, groups: Sequence[Group], failed: Mapping[str, str] | None = None) -> Path:
    """Write the page that compares groups of runs into `folder`.

    `failed` has the reasons of runs that failed, by folder. An inspection that cannot be read is left out. Raises
    UserError for another damaged file of a run.
    """
    runs = [run for group in groups for run in group.runs]
    # One run is shown in detail: the first seed of the last group with a teacher.
    taught = next((group.runs[0] for group in reversed(groups) if "teacher" in group.runs[0].metrics), None)
    shown = taught or runs[0]
    inspected = _inspected(groups, shown)
    reasons = [list(one) for one in (failed or {}).items()]
    failures = TextTable("Runs that failed", ["", "reason"], reasons, text_columns=(0, 1))
    data = ", ".join(dict.fromkeys(run.metrics["data"] for run in runs))
    epochs = ", ".join(dict.fromkeys(str(run.metrics["training"]["epochs"]) for run in runs))
    curves = comparison({group.label: group.runs for group in groups}, _one_teacher(runs))
    scores = ", ".join(f"{group.label} {statistics.mean(score(run) for run in group.runs):.2f}" for group in groups)
    name = measure_of_all(runs).name
    text = f"The {name} on held-out images over the epochs, and its mean on the test split, %: {scores}."
    drawn = [{"title": "Methods", "svg": curves, "text": text}, sweep_plot(groups), reliability(groups)]
    figures = [figure for figure in [*drawn, class_gains(groups)] if figure]
    return write_page(
        folder / PAGE_NAME,
        title=_pairs(runs),
        lead=f"{data}; {epochs} epochs; {len(runs)} runs.",
        tables=[
            full_table(groups),
            *([failures] if reasons else []),
            cost_table(shown),
            *inspected_tables(inspected),
        ],
        figures=[*figures, *inspected_figures(inspected)],
        inspected=inspected,
        samples=shown.samples,
        sampled=f" by {shown.metrics['method']}, seed {shown.metrics['seed']}",
        run=shown,
    )


def _inspected(groups: Sequence[Group], shown: RunRecord) -> list[Inspected]:
    """Return what was found on the first inspected run of each group; the group that is shown in detail comes first."""
    runs = [run for group in groups for run in group.runs]
    teachers = {run.folder: name for run, name in zip(runs, teacher_names(runs), strict=True)}
    found = []
    for group in sorted(groups, key=lambda group: shown not in group.runs):
        for run in group.runs:
            inspection, _ = _read_inspection(run)
            if inspection is not None:
                found.append(Inspected(group.label, f"teacher ({teachers[run.folder]})", inspection))
                break
    return found


def unread_inspections(groups: Sequence[Group]) -> list[str]:
    """Say which inspections of the runs of a page cannot be read, and why."""
    return [why for group in groups for run in group.runs if (why := _read_inspection(run)[1])]


def _read_inspection(run: RunRecord) -> tuple[Inspection | None, str]:
    try:
        return read_inspection(run.folder), ""
    except UserError as error:
        return None, str(error)


def short_table(groups: Sequence[Group]) -> TextTable:
    """Make the table for a terminal: mean and sample standard deviation over seeds, and the gain over `none`."""
    if _by_neighbours(groups):
        return _neighbours_table(groups, costs=False)
    rows = [[f"teacher ({name})", f"{top1:.2f}", "", "", "", "1", ""] for name, top1 in _teachers(groups)]
    for group in groups:
        plain = () if group.base is None else group.base.runs
        mean, spread = _mean_and_spread([score(run) for run in group.runs])
        better = f"{gain(group.runs, plain).mean:+.2f}" if plain else ""
        extra = f"{group.runs[0].metrics['training']['training_only_parameters']:,}"
        rows.append([group.label, mean, spread, better, reached(group.runs, plain)[0], str(len(group.runs)), extra])
    note = (
        "± is the sample standard deviation over seeds; a gain that is smaller means little. Share of epochs to match "
        "none: that after which a run has the best validation accuracy of none, same seed, mean."
    )
    header = ["", "mean", "spread", "gain over none", "share of epochs to match none", "runs", "extra params"]
    return TextTable("Top-1 on the test split, %", header, rows, note)


def _neighbours_table(groups: Sequence[Group], *, costs: bool) -> TextTable:
    """Make the table of runs without labels: what their embeddings know."""
    runs = [run for group in groups for run in group.runs]
    header = ["", "nearest neighbours, %", "±", "linear probe, %", "± of the probe", "runs", *(_COSTS if costs else ())]
    teachers = [[label, knn, "", probe, "", "1"] for label, knn, probe in _scored_teachers(runs)]
    rows = [row + [""] * (len(header) - len(row)) for row in teachers]
    for group in groups:
        cells: list[str] = []
        for values in _embedding_scores([run.metrics["student"] for run in group.runs]):
            # A mean over some of the runs would stand beside one over all.
            cells += _mean_and_spread(values, sign="") if len(values) == len(group.runs) else ("", "")
        rows.append([group.label, *cells, str(len(group.runs)), *(_costs(group) if costs else ())])
    note = "± is the sample standard deviation over seeds; scores on other probe_data cannot be compared."
    note += f" {_COSTS_NOTE}" if costs else ""
    return TextTable("The embedding, on the test split", header, rows, note)


def _by_neighbours(groups: Sequence[Group]) -> bool:
    return measure_of_all([run for group in groups for run in group.runs]) == NEIGHBOURS


def _scored_teachers(runs: Sequence[RunRecord]) -> list[tuple[str, str, str]]:
    """Return label and scores of each teacher of runs without labels, by the images that score embeddings."""
    sets = [(load_yaml(run.settings) or {}).get("probe_data") for run in runs]
    several = len(set(map(str, sets))) > 1
    found = []
    for name, run, probed in zip(teacher_names(runs), runs, sets, strict=True):
        if "teacher" in run.metrics:
            knn, probe = (f"{one[0]:.2f}" if one else "" for one in _embedding_scores([run.metrics["teacher"]]))
            found.append((f"teacher ({name})" + (f"  probe_data={probed}" if several else ""), knn, probe))
    return list(dict.fromkeys(found))


def _embedding_scores(models: Sequence[ScoredModel]) -> tuple[list[float], list[float]]:
    """Return the scores by nearest neighbours and by a linear probe, of the models that have them."""
    return [m["knn"] for m in models if "knn" in m], [m["linear_probe"] for m in models if "linear_probe" in m]


def full_table(groups: Sequence[Group]) -> TextTable:
    """Make the table of a page, with how sure the gains are, and the costs."""
    if _by_neighbours(groups):
        return _neighbours_table(groups, costs=True)
    header = ["", "top-1, %", "±", "gain", "95%, seeds", "p, images", "top-5, %", "calibration error, %"]
    header += ["share of epochs to match none", "minutes to match none", *_COSTS, "runs"]
    width = len(header)
    rows = [[f"teacher ({name})", f"{top1:.2f}", *[""] * (width - 3), "1"] for name, top1 in _teachers(groups)]
    rows += [_full_row(group) for group in groups]
    note = (
        "± is the sample standard deviation over seeds. Gain is over none with the same student, in points: 95% is "
        "half of the confidence interval over shared seeds (Student's t); p is that of a paired t-test over the test "
        "images for the models of these seeds, so it does not contain the variation between seeds. To match none is to "
        f"have the best validation accuracy of none with the same seed. {_COSTS_NOTE}"
    )
    return TextTable("Comparison", header, rows, note)


def _full_row(group: Group) -> list[str]:
    plain = () if group.base is None else group.base.runs
    metrics = [run.metrics for run in group.runs]
    tests = [one["student"]["test"] for one in metrics]
    cells = [group.label, *_mean_and_spread([score(run) for run in group.runs], sign="")]
    if plain:
        found = gain(group.runs, plain)
        cells += [f"{found.mean:+.2f}", "" if found.half_width is None else f"{found.half_width:.2f}"]
        cells.append("" if found.p_value is None else f"{found.p_value:.2g}")
    else:
        cells += ["", "", ""]
    top5 = [test["top5"] for test in tests if "top5" in test]
    cells.append(f"{statistics.mean(top5):.2f}" if top5 else "")
    cells.append(f"{statistics.mean(test['ece'] for test in tests):.2f}")
    return [*cells, *reached(group.runs, plain), *_costs(group), str(len(group.runs))]


def _costs(group: Group) -> list[str]:
    metrics = [run.metrics for run in group.runs]
    cells = [f"{statistics.mean(one['training']['seconds'] for one in metrics) / 60:.1f}"]
    peaks = [peak for one in metrics if (peak := one["training"].get("peak_memory")) is not None]
    cells.append(f"{statistics.median(peaks) / 2**20:.0f}" if peaks else "")
    first = metrics[0]
    cells += [f"{first['student']['parameters'] / 1e6:.2f}", f"{first['student']['macs'] / 1e6:.1f}"]
    cells.append(f"{statistics.median(one['student']['images_per_second'] for one in metrics):.0f}")
    return [*cells, f"{first['training']['training_only_parameters']:,}"]


def _mean_and_spread(values: Sequence[float], sign: str = "± ") -> tuple[str, str]:
    return f"{statistics.mean(values):.2f}", f"{sign}{statistics.stdev(values):.2f}" if len(values) > 1 else ""


def _pairs(runs: Sequence[RunRecord]) -> str:
    students = {run.metrics["student"]["name"]: None for run in runs}
    teachers = {run.metrics["teacher"]["name"]: None for run in runs if "teacher" in run.metrics}
    taught = f"{', '.join(teachers)} {'teaches' if len(teachers) == 1 else 'teach'} " if teachers else ""
    return f"{taught}{', '.join(students)}"


def _teachers(groups: Sequence[Group]) -> list[tuple[str, float]]:
    """Return name and accuracy of every teacher."""
    runs = [run for group in groups for run in group.runs]
    pairs = zip(teacher_names(runs), map(teacher_score, runs), strict=True)
    return list(dict.fromkeys((name, top1) for name, top1 in pairs if top1 is not None))


def _one_teacher(runs: Sequence[RunRecord]) -> float | None:
    """Return the score of the teacher, where all runs have the same."""
    found = {own for run in runs if (own := teacher_score(run)) is not None}
    return found.pop() if len(found) == 1 else None
