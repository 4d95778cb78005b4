"""The plot of a sweep: accuracy over the values of the one setting that changes."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt

from crossdistill.config.files import flat
from crossdistill.config.yaml_text import load_yaml
from crossdistill.report.groups import Group, data_names, result_settings, teacher_names
from crossdistill.report.measure import measure_of_all, score
from crossdistill.report.plots import COLOURS, STYLE, svg_of

_LEAST = 2
"""Values of a setting that make a sweep."""


@dataclass(frozen=True)
class Sweep:
    """A setting with its values in order, and by the name of a series the groups that have these values."""

    setting: str
    values: list[Any]
    series: dict[str, dict[Any, Group]]


def find_sweep(groups: Sequence[Group]) -> Sweep | None:
    """Return the setting that most groups differ in, where they are equal in all others; None without such a one."""
    first = [group.runs[0] for group in groups]
    settings = [result_settings(flat(load_yaml(run.settings) or {})) for run in first]
    # What else tells groups apart: without it, one would take the place of another.
    models = [(run.metrics["student"]["name"], run.metrics["method"]) for run in first]
    kinds = list(zip(models, teacher_names(first), data_names(first), strict=True))
    names = dict.fromkeys(name for one in settings for name in one)
    sweeps = [found for name in names if (found := _sweep_of(name, groups, settings, kinds))]
    return max(sweeps, key=lambda sweep: len(sweep.values), default=None)


def _sweep_of(
    name: str, groups: Sequence[Group], settings: Sequence[dict[str, Any]], kinds: Sequence[object]
) -> Sweep | None:
    found: dict[str, dict[Any, Group]] = {}
    for group, own, kind in zip(groups, settings, kinds, strict=True):
        if isinstance(own.get(name), int | float | str):
            others = {key: value for key, value in own.items() if key != name}
            found.setdefault(repr((kind, others)), {})[own[name]] = group
    series = [members for members in found.values() if len(members) >= _LEAST]
    if not series:
        return None
    values = sorted({value for members in series for value in members}, key=lambda one: (isinstance(one, str), one))
    labels = [_shared(list(members.values())) for members in series]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({place})" for place, label in enumerate(labels, 1)]
    return Sweep(name, values, dict(zip(labels, series, strict=True)))


def _shared(groups: Sequence[Group]) -> str:
    """Return the parts that the labels of groups have in common, or the name of their method."""
    parts = [group.label.split("  ") for group in groups]
    same = [part for part in parts[0] if all(part in other for other in parts)]
    return "  ".join(same) or str(groups[0].runs[0].metrics["method"])


def sweep_plot(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Make the figure of a sweep: title, SVG and text; None where no setting was swept."""
    found = find_sweep(groups)
    if found is None:
        return None
    measure = measure_of_all([run for group in groups for run in group.runs])
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained")
        said = []
        for place, (label, members) in enumerate(found.series.items()):
            colour = COLOURS[(place + 1) % len(COLOURS)]
            scores = {value: [score(run) for run in group.runs] for value, group in members.items()}
            points = sorted((found.values.index(value), tested) for value, tested in scores.items())
            means = [statistics.mean(tested) for _, tested in points]
            axis.plot([x for x, _ in points], means, color=colour, marker="_", ms=12, lw=1.5, label=label)
            for x, tested in points:
                axis.scatter([x] * len(tested), tested, color=colour, alpha=0.6, s=20)
            pairs = zip((found.values[x] for x, _ in points), means, strict=True)
            said.append(f"{label}: " + ", ".join(f"{value}: {mean:.2f}" for value, mean in pairs))
        swept = [group for members in found.series.values() for group in members.values()]
        if (base := swept[0].base) is not None and all(group.base == base for group in swept):
            level = statistics.mean(score(run) for run in base.runs)
            axis.axhline(level, color=COLOURS[0], lw=1, ls="--", label=base.label)
        axis.set_xticks(range(len(found.values)), [str(value) for value in found.values])
        axis.set_xlabel(found.setting)
        axis.set_ylabel(f"{measure.name} on the test split, %")
        axis.legend(frameon=False)
        return {
            "title": f"Sweep of {found.setting}: mean and single seeds",
            "svg": svg_of(figure),
            "text": f"Mean {measure.name}, %. " + "; ".join(said) + ".",
        }
