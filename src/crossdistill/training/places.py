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
    Whether all other settings are the same is checked later.
    """
    names = sorted(path.parent.name for path in out.glob(f"*/{CONFIG_NAME}"))
    stored = {name: config for name in names if (config := _read(out / name)) is not None}
    return [replace(cell, place=_place(cell, stored, out)) for cell in cells]


def _place(cell: Cell, stored: Mapping[str, RunConfig], out: Path) -> str:
    """Return the folder of a run of the same models, "" where there is none, or where it has the name of the cell."""
    short = re.escape(replace(cell, student="", teacher="").folder)
    same = [
        name
        for name, config in stored.items()
        if re.fullmatch(rf"(.*--)?{short}", name) and _same_models(cell, config, out)
    ]
    return "" if cell.folder in same or not same else same[0]


def teacher_folder(cell: Cell, out: Path) -> Path:
    """Return the folder of the teacher that is trained first for a run."""
    name = cell.teacher_to_train or ""
    listed, alone = out / f"teacher--{plain_name(name)}", out / "teacher"
    own, other = (listed, alone) if cell.teacher else (alone, listed)
    if not (own / CONFIG_NAME).exists() and (config := _read(other)) is not None and config.student == name:
        return other
    return own


def _read(folder: Path) -> RunConfig | None:
    try:
        return read_config(folder)
    except (UserError, OSError):
        return None


def _same_models(cell: Cell, stored: RunConfig, out: Path) -> bool:
    """Return whether a run has the models, the method and the seed of a cell."""
    own = cell.config
    if (stored.student, stored.model.student_args) != (own.student, own.model.student_args):
        return False
    if (stored.method, stored.seed) != (own.method, own.seed):
        return False
    if not cell.variant.choice(own).needs.teacher:
        return True
    if cell.teacher_to_train is not None:
        return _paths(stored) == [teacher_folder(cell, out).resolve()]
    return _paths(stored) == _paths(own)


def _paths(config: RunConfig) -> list[Path | None]:
    return [None if checkpoint is None else Path(checkpoint).resolve() for _, checkpoint in config.teachers]
