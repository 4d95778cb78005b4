"""Finished runs, found in folders and grouped by what they have in common: all settings but the seed."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.config.files import BALANCE, EXECUTION, OF_TEACHER, flat
from crossdistill.config.yaml_text import load_yaml
from crossdistill.errors import UserError
from crossdistill.files import shortest_endings
from crossdistill.report.records import FAILURE_NAME, METRICS_NAME, RunRecord, read_failure, read_run

_NAMED = ("seed", "role", "student", "teacher", "teacher_checkpoint", "method", "data")
"""Settings that stand in the names of models, methods and data, and the seed."""
_NO_RESULT = (*EXECUTION, "trust_teacher", "teacher_training")


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds, and the group of plain students that they are compared with, if there is one."""

    label: str
    runs: tuple[RunRecord, ...]
    base: "Group | None" = None


def find_runs(folders: Iterable[Path]) -> list[RunRecord]:
    """Read the finished runs in folders, which are runs or hold runs. Raises UserError for one without."""
    found: dict[Path, RunRecord] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is not a folder")
        inside = (
            [folder] if (folder / METRICS_NAME).exists() else sorted(p.parent for p in folder.glob(f"*/{METRICS_NAME}"))
        )
        if not inside:
            failure = read_failure(folder)
            why = "" if failure is None else f": it failed ({failure['reason']})"
            raise UserError(f"there is no finished run in {str(folder)!r}{why}")
        found |= {path.resolve(): read_run(path) for path in inside}
    return list(found.values())


def find_failures(folders: Iterable[Path]) -> dict[str, str]:
    """Return the reasons of runs in folders of comparisons that failed, by their names, and are not finished."""
    failed = sorted(path.parent.resolve() for folder in folders for path in folder.glob(f"*/{FAILURE_NAME}"))
    unfinished = [folder for folder in failed if not (folder / METRICS_NAME).exists()]
    found = {str(folder): read_failure(folder) for folder in unfinished}
    names = dict(zip(found, shortest_endings(list(found)), strict=True))
    return {names[folder]: failure["reason"] for folder, failure in found.items() if failure is not None}


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Group runs, plain students first; a label has what differs: models, method, options, settings.

    A run that repeats the seed of another of its group is left out.
    """
    settings = [flat(load_yaml(run.settings) or {}) for run in runs]
    general = [{**_general(own), "data": data} for own, data in zip(settings, data_names(runs), strict=True)]
    varied = _varied(general)
    students, teachers = [run.metrics["student"]["name"] for run in runs], teacher_names(runs)
    grouped: dict[str, dict[int, RunRecord]] = {}
    pairs, plain = {}, {}
    for place, run in enumerate(runs):
        own, method = settings[place], run.metrics["method"]
        same = [one for one, other in zip(settings, runs, strict=True) if other.metrics["method"] == method]
        taught = [one for one, name in zip(settings, teachers, strict=True) if name and teachers[place]]
        others = _varied([_starting(one, OF_TEACHER) for one in taught])
        parts = (
            students[place] if len(set(students)) > 1 else "",
            teachers[place] if len(set(teachers) - {""}) > 1 else "",
            _method(method, own, same),
            ", ".join([*_shown(general[place], varied), *_shown(own, others)]),
        )
        label = "  ".join(part for part in parts if part)
        grouped.setdefault(label, {}).setdefault(run.metrics["seed"], run)
        values = tuple(repr(general[place].get(name)) for name in varied if name != BALANCE)
        pairs[label] = (students[place], values)
        if not teachers[place] and method == "none":
            plain[pairs[label]] = label
    groups = {label: Group(label, tuple(members.values())) for label, members in grouped.items()}
    bases = {label: groups[plain[pair]] for label, pair in pairs.items() if plain.get(pair, label) != label}
    ordered = sorted(groups.values(), key=lambda group: group.runs[0].metrics["method"] != "none")
    return [Group(group.label, group.runs, bases.get(group.label)) for group in ordered]


def data_names(runs: Sequence[RunRecord]) -> list[str]:
    """Name the data of each run; sets of one name with other test images are told apart by digests of these."""
    names, marks = [run.metrics["data"] for run in runs], [run.test_images() for run in runs]
    known = Counter(name for name, _ in set(zip(names, marks, strict=True)))
    return [f"{name} {mark[:6]}" if known[name] > 1 else name for name, mark in zip(names, marks, strict=True)]


def teacher_names(runs: Sequence[RunRecord]) -> list[str]:
    """Name the teacher of each run; "" without one.

    Teachers of one name are told apart by the folders of their runs, else by digests of their weights.
    """
    names = [str(run.metrics["teacher"]["name"]) if "teacher" in run.metrics else "" for run in runs]
    digests = [
        "+".join(digest[:6] for name, digest in sorted(run.environment.inputs.items()) if name.startswith("teacher"))
        for run in runs
    ]
    known = Counter(name for name, _ in set(zip(names, digests, strict=True)) if name)
    several = {name for name, count in known.items() if count > 1}
    marks = dict(zip(digests, _folder_names(runs, digests), strict=True))
    return [f"{name} {marks[digest]}" if name in several else name for name, digest in zip(names, digests, strict=True)]


def _folder_names(runs: Sequence[RunRecord], digests: Sequence[str]) -> list[str]:
    """Return the ends of the paths of the teachers' runs; the digests where two teachers have one path, or several."""
    folders = [(load_yaml(run.settings) or {}).get("teacher_checkpoint") for run in runs]
    pairs = zip(runs, folders, strict=True)
    paths = [os.path.normpath(run.folder / one) if isinstance(one, str) else "" for run, one in pairs]
    if len(set(zip(paths, digests, strict=True))) != len(set(paths)):
        return list(digests)
    short = dict(zip(dict.fromkeys(paths), shortest_endings(list(dict.fromkeys(paths))), strict=True))
    return [short[path] for path in paths]


def _method(method: str, own: dict[str, Any], same: Sequence[dict[str, Any]]) -> str:
    """Name the method of a run with the options in which it differs from other runs of that method."""
    changed = [name for name in _varied([_starting(one, ("options.",)) for one in same]) if name in own]
    # Options of a sum have the name of their method in front.
    first = 1 if "+" in method else 2
    options = ",".join(f"{'.'.join(name.split('.')[first:])}={own[name]}" for name in changed)
    return method + (f"{{{options}}}" if options else "")


def _general(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that change the result of any student."""
    own = result_settings(settings)
    return {name: value for name, value in own.items() if not name.startswith(("options.", *OF_TEACHER))}


def result_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that can change the result of a run, but for the models, the method and the seed."""
    return {
        name: value
        for name, value in settings.items()
        if name.partition(".")[0] not in (*_NAMED, *_NO_RESULT) and name not in _NO_RESULT
    }


def _starting(settings: dict[str, Any], beginnings: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.startswith(beginnings)}


def _shown(settings: dict[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{name.rpartition('.')[2]}={settings.get(name)}" for name in names]


def _varied(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of settings that are not the same in all."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]
