"""Runs of a comparison that an earlier command has put into folders of other names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from crossdistill.config import RunConfig
from crossdistill.errors import UserError
from crossdistill.methods import NONE
from crossdistill.report.records import CONFIG_NAME
from crossdistill.training.grid import Cell, plain_name
from crossdistill.training.run_folder import read_config


def placed(cells: Sequence[Cell], out: Path) -> list[Cell]:
    """Return the runs with the folders that they have in `out`.

    A folder is named by what a command lists: a student that is listed alone has runs without its name. Such a run is
    used in a command that lists several students or teachers, and the other way round, so that it is not trained again.
    Beside runs of other models a new one has the names of its own. Whether all other settings are the same is checked
    later.
    """
    names = sorted(path.parent.name for path in out.glob(f"*/{CONFIG_NAME}"))
    stored = {name: config for name in names if (config := _read(out / name)) is not None and config.role == "student"}
    found = [replace(cell, place=_place(cell, stored, _teacher_paths(cell, out))) for cell in cells]
    folders = [cell.folder for cell in found]
    if twice := next((name for name in folders if folders.count(name) > 1), None):
        labels = " and ".join(repr(cell.label) for cell in found if cell.folder == twice)
        raise UserError(f"{labels} are one run, in {str(out / twice)!r}; leave one of them out")
    return found


def _place(cell: Cell, stored: Mapping[str, RunConfig], teachers: Sequence[Path | None] | None) -> str:
    """Return the folder of a run where it is not the one that the command gives it, else "".

    `teachers` are the weights of its teachers; None where it reads none.
    """
    short = re.escape(replace(cell, student="", teacher="").folder)
    same = [
        name
        for name, config in stored.items()
        if re.fullmatch(rf"(.*--)?{short}", name) and _same_run(cell, config, teachers)
    ]
    if same:
        return "" if cell.folder in same else same[0]
    student, teacher = cell.student, cell.teacher
    if not all(_same_student(cell, config) for config in stored.values()):
        student = student or _student_name(cell.config)
    taught = [config for config in stored.values() if config.method != NONE]
    if teachers is not None and any(_paths(config) != teachers for config in taught):
        teacher = teacher or _teacher_name(cell.config)
    longer = replace(cell, student=student, teacher=teacher).folder
    if longer in stored:  # a teacher with the name of a student
        longer = replace(cell, student=student or _student_name(cell.config), teacher=teacher).folder
    return "" if longer == cell.folder else longer


def _student_name(config: RunConfig) -> str:
    args = ",".join(f"{name}={value}" for name, value in config.model.student_args.items())
    return config.student + (f"{{{args}}}" if args else "")


def _teacher_name(config: RunConfig) -> str:
    return "+".join(name or Path(checkpoint or "").name for name, checkpoint in config.teachers)


def teacher_folder(cell: Cell, out: Path) -> Path:
    """Return the folder of the teacher that is trained first for a run. Raises UserError for one that is damaged."""
    name = cell.teacher_to_train or ""
    listed, alone = out / f"teacher--{plain_name(name)}", out / "teacher"
    begun = [folder for folder in (listed, alone) if (folder / CONFIG_NAME).exists()]
    if known := [folder for folder in begun if read_config(folder).student == name]:
        return known[0]
    return listed if cell.teacher or alone in begun else alone


def _read(folder: Path) -> RunConfig | None:
    try:
        return read_config(folder)
    except (UserError, OSError):
        return None


def _same_run(cell: Cell, stored: RunConfig, teachers: Sequence[Path | None] | None) -> bool:
    """Return whether a run has the models, the method and the seed of a cell."""
    if (stored.method, stored.seed) != (cell.config.method, cell.config.seed) or not _same_student(cell, stored):
        return False
    return teachers is None or _paths(stored) == teachers


def _same_student(cell: Cell, stored: RunConfig) -> bool:
    own = cell.config
    return (stored.student, stored.model.student_args) == (own.student, own.model.student_args)


def _teacher_paths(cell: Cell, out: Path) -> list[Path | None] | None:
    if not cell.variant.choice(cell.config).needs.teacher:
        return None
    return _paths(cell.config) if cell.teacher_to_train is None else [teacher_folder(cell, out).resolve()]


def _paths(config: RunConfig) -> list[Path | None]:
    return [None if checkpoint is None else Path(checkpoint).resolve() for _, checkpoint in config.teachers]
