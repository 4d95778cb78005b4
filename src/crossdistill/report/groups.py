"""Finished runs, found in folders and grouped by what they have in common: all settings but the seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.config.files import flat
from crossdistill.config.yaml_text import load_yaml
from crossdistill.errors import UserError
from crossdistill.report.records import METRICS_NAME, RunRecord, read_run

_SAME_RESULT = (
    "seed",
    "out",
    "cache",
    "cache_dtype",
    "engine",
    "role",
    "trust_code",
    "trust_teacher",
    "method",
    "loader.workers",
)
"""Settings that do not tell groups apart."""
_NAMED = ("student", "teacher", "teacher_checkpoint", "data")
"""Settings that the names of models and data stand for."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds, and the group of plain students that they are compared with, if there is one."""

    label: str
    runs: tuple[RunRecord, ...]
    base: "Group | None" = None


def find_runs(folders: Iterable[Path]) -> list[RunRecord]:
    """Read the finished runs of students in folders, which are runs or hold runs. Raises UserError for one without."""
    found: dict[Path, RunRecord] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is not a folder")
        inside = (
            [folder] if (folder / METRICS_NAME).exists() else sorted(p.parent for p in folder.glob(f"*/{METRICS_NAME}"))
        )
        if not inside:
            raise UserError(f"there is no finished run in {str(folder)!r}")
        found |= {path.resolve(): read_run(path) for path in inside}
    return [run for run in found.values() if run.role == "student" and "test" in run.metrics["student"]]


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Group runs, plain students first; a label has what differs: models, method, options, settings."""
    settings = [flat(load_yaml(run.settings) or {}) for run in runs]
    others = [{**_other(own), "data": run.metrics["data"]} for own, run in zip(settings, runs, strict=True)]
    varied = _varied(others)
    students = [run.metrics["student"]["name"] for run in runs]
    teachers = _teachers(runs, settings)
    grouped: dict[str, list[RunRecord]] = {}
    pairs, plain = {}, {}
    for place, run in enumerate(runs):
        rest = ", ".join(f"{name.rpartition('.')[2]}={others[place].get(name)}" for name in varied)
        student = students[place] if len(set(students)) > 1 else ""
        teacher = teachers[place] if len({one for one in teachers if one}) > 1 else ""
        same = [own for own, other in zip(settings, runs, strict=True) if _kind(other) == _kind(run)]
        label = "  ".join(part for part in (student, teacher, _method(run, settings[place], same), rest) if part)
        grouped.setdefault(label, []).append(run)
        # The balance of the terms does not change a student without a teacher.
        pairs[label] = (student, tuple(others[place].get(name) for name in varied if name != "optim.balance"))
        if _kind(run) == "none":
            plain[pairs[label]] = label
    groups = {label: Group(label, tuple(members)) for label, members in grouped.items()}
    bases = {label: groups[plain[pair]] for label, pair in pairs.items() if plain.get(pair, label) != label}
    ordered = sorted(groups.values(), key=lambda group: _kind(group.runs[0]) != "none")
    return [Group(group.label, group.runs, bases.get(group.label)) for group in ordered]


def _teachers(runs: Sequence[RunRecord], settings: Sequence[dict[str, Any]]) -> list[str]:
    """Name the teacher of each run; "" without one. Teachers of one name are told apart by their checkpoints."""
    names = [str(run.metrics["teacher"]["name"]) if "teacher" in run.metrics else "" for run in runs]
    weights = [
        tuple(sorted(digest for name, digest in run.environment.inputs.items() if name.startswith("teacher")))
        for run in runs
    ]
    found = []
    for name, own, digest in zip(names, settings, weights, strict=True):
        same = {other for other_name, other in zip(names, weights, strict=True) if other_name == name}
        checkpoint = own.get("teacher_checkpoint")
        where = Path(str(checkpoint)).name if isinstance(checkpoint, str) else ", ".join(digest)
        found.append(f"{name} ({where})" if name and len(same) > 1 else name)
    return found


def _kind(run: RunRecord) -> str:
    return run.metrics["method"]


def _method(run: RunRecord, own: dict[str, Any], same: Sequence[dict[str, Any]]) -> str:
    """Name the method of a run with the options in which it differs from other runs of that method."""
    changed = [name for name in _varied([_options(one) for one in same]) if name in own]
    method = run.metrics["method"]
    # Options of a sum have the name of their method in front.
    first = 1 if "+" in method else 2
    options = ",".join(f"{'.'.join(name.split('.')[first:])}={own[name]}" for name in changed)
    return method + (f"{{{options}}}" if options else "")


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.startswith("options.")}


def _other(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are neither options of methods nor stand for names, nor have no influence on results."""
    left_out = (*_SAME_RESULT, *_NAMED, "options", "model.teacher", "teacher_training")
    return {name: value for name, value in settings.items() if not name.startswith(left_out)}


def _varied(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of settings that are not the same in all."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]
