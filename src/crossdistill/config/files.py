"""Settings as plain data and YAML: recipes, and the config.yaml of a run."""

import os
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonargparse import get_loader
from pydantic import TypeAdapter, ValidationError

from crossdistill.config.run import RunConfig
from crossdistill.config.validation import plain
from crossdistill.errors import UserError, first_line, unknown

_PATHS = ("data", "out", "teacher_checkpoint", "cache", "model.student_checkpoint", "loader.root")
"""Settings that hold paths."""


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the settings as plain data that YAML and JSON can hold."""
    values = asdict(config)
    values["augment"]["scale"] = list(config.augment.scale)
    return values


def from_dict(values: Mapping[str, Any], owner: str) -> RunConfig:
    """Make settings of plain data; `owner` says in an error where they come from.

    Raises UserError for an unknown name (with the nearest one), or a value of another type or range.
    """
    check_names(values, owner)
    try:
        return TypeAdapter(RunConfig).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(f"{owner}{plain(error)}") from error


def check_names(values: Mapping[str, Any], owner: str, kind: Any = RunConfig, section: str = "") -> None:
    """Raise UserError for a name that no setting has, with the nearest one."""
    types = {field.name: field.type for field in fields(kind)}
    for name, value in values.items():
        if name not in types:
            raise UserError(f"{owner}{unknown('setting', f'{section}{name}', (section + known for known in types))}")
        if is_dataclass(types[name]) and isinstance(value, Mapping):
            check_names(value, owner, types[name], f"{section}{name}.")


def with_changes(config: RunConfig, changes: Mapping[str, Any], owner: str) -> RunConfig:
    """Return the settings with other values, by dotted name. Raises UserError for a wrong name, type or range."""
    values = to_dict(config)
    for dotted, value in changes.items():
        *sections, name = dotted.split(".")
        place = values
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"{owner}{dotted}: {section} is no group of settings")
            place = inner
        place[name] = value
    return from_dict(values, owner)


def recipe_path(name: str) -> Path:
    """Find a packaged recipe by name, or a YAML file. Raises UserError."""
    folder = files("crossdistill.recipes")
    packaged = folder / f"{name}.yaml"
    if packaged.is_file():
        return Path(str(packaged))
    if Path(name).is_file():
        return Path(name)
    known = [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    raise unknown("recipe (neither a file nor a name)", name, known)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file. Paths that begin with ./ or ../ are relative to the file.

    Raises UserError for a file that cannot be read, or a setting that does not exist.
    """
    owner = f"in {str(path)!r}: "
    try:
        values = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML raises many kinds
        raise UserError(f"{str(path)!r} cannot be read as YAML: {first_line(error)}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{str(path)!r} holds {type(values).__name__}; it must hold settings, as `epochs: 10`")
    check_names(values, owner)
    for name in _PATHS:
        section, _, key = name.rpartition(".")
        place = values.get(section) if section else values
        if isinstance(place, dict) and key in place:
            place[key] = _located(place[key], path.parent)
    return values


def _located(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_located(item, folder) for item in value]
    if isinstance(value, str) and value.startswith(("./", "../")):
        return os.path.normpath(folder / value)
    return value
