"""Runs of a comparison that an earlier command has put into folders of other names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from crossdistill.config import RunConfig
from crossdistill.errors import UserError
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
    return [replace(cell, place=_place(cell, stored, out)) for cell in cells]


def _place(cell: Cell, stored: Mapping[str, RunConfig], out: Path) -> str:
    """Return the folder of a run where it is not the one that the command gives it, else ""."""
    short = re.escape(replace(cell, student="", teacher="").folder)
    same = [
        name
        for name, config in stored.items()
        if re.fullmatch(rf"(.*--)?{short}", name) and _same_models(cell, config, out)
    ]
    if same:
        return "" if cell.folder in same else same[0]
    student, teacher = cell.student, cell.teacher
    if not all(_same_student(cell, config) for config in stored.values()):
        student = student or _student_name(cell.config)
    reads = cell.variant.choice(cell.config).needs.teacher
    if reads and not all(_same_teacher(cell, config, out) for config in stored.values() if config.teachers):
        teacher = teacher or _teacher_name(cell.config)
    longer = replace(cell, student=student, teacher=teacher).folder
    return "" if longer == cell.folder else longer


def _student_name(config: RunConfig) -> str:
    args = ",".join(f"{name}={value}" for name, value in config.model.student_args.items())
    return config.student + (f"{{{args}}}" if args else "")


def _teacher_name(config: RunConfig) -> str:
    return "+".join(name or Path(checkpoint or "").name for name, checkpoint in config.teachers)


def teacher_folder(cell: Cell, out: Path) -> Path:
    """Return the folder of the teacher that is trained first for a run."""
    name = cell.teacher_to_train or ""
    listed, alone = out / f"teacher--{plain_name(name)}", out / "teacher"
    known = [folder for folder in (listed, alone) if (config := _read(folder)) is not None and config.student == name]
    if known:
        return known[0]
    return listed if cell.teacher or (alone / CONFIG_NAME).exists() else alone


def _read(folder: Path) -> RunConfig | None:
    try:
        return read_config(folder)
    except (UserError, OSError):
        return None


def _same_models(cell: Cell, stored: RunConfig, out: Path) -> bool:
    """Return whether a run has the models, the method and the seed of a cell."""
    if (stored.method, stored.seed) != (cell.config.method, cell.config.seed) or not _same_student(cell, stored):
        return False
    return not cell.variant.choice(cell.config).needs.teacher or _same_teacher(cell, stored, out)


def _same_student(cell: Cell, stored: RunConfig) -> bool:
    own = cell.config
    return (stored.student, stored.model.student_args) == (own.student, own.model.student_args)


def _same_teacher(cell: Cell, stored: RunConfig, out: Path) -> bool:
    if cell.teacher_to_train is not None:
        return _paths(stored) == [teacher_folder(cell, out).resolve()]
    return _paths(stored) == _paths(cell.config)


def _paths(config: RunConfig) -> list[Path | None]:
    return [None if checkpoint is None else Path(checkpoint).resolve() for _, checkpoint in config.teachers]
