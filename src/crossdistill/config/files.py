"""Settings as plain data and YAML: recipes, and the config.yaml of a run."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from crossdistill.config.run import RunConfig
from crossdistill.config.validation import validated
from crossdistill.config.yaml_text import load_yaml
from crossdistill.errors import UserError, first_line, unknown
from crossdistill.files import read_text

PATHS = (
    *("data", "out", "teacher_checkpoint", "cache", "probe_data", "model.student_checkpoint"),
    *("loader.root", "loader.unlabelled"),
)
"""Settings that hold paths."""
EXECUTION = (
    *("out", "cache", "trust_code", "loader.workers"),
    *("engine.accelerator", "engine.compile", "engine.channels_last", "engine.threads"),
    *("engine.log_every", "engine.on_nan"),
)
"""Settings of how a run is executed, not of what it computes."""
OF_TEACHER = ("model.teacher", "augment.teacher", "teacher_weights", "cache_dtype", "cache_top_k")
"""Beginnings of the names of settings that do not concern a student without a teacher."""
BALANCE = "optim.balance"
"""A setting that has no effect on a student without a teacher."""
_MAPPINGS = ("options", "teacher_training")
"""Settings whose value is a mapping; the other mappings are groups of settings."""
_TORCH = "torch/"
"""Prefix of the names of torchvision's data sets, which are read from loader.root."""
SETS = (_TORCH, "hfds/")
"""Prefixes of data sets that have a name and no path: torchvision's, and those of the Hugging Face hub."""
_WORDS = {"data": ("digits",), "probe_data": ("digits",), "loader.unlabelled": ("digits",), "cache": ("off", "auto")}
"""Values of these settings that are not paths."""


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the settings as plain data that YAML and JSON can hold."""
    values = asdict(config)
    values["augment"]["scale"] = list(config.augment.scale)
    return values


def from_dict(values: Mapping[str, Any], owner: str) -> RunConfig:
    """Make settings of plain data; `owner` begins an error, as "in 'recipe.yaml': ".

    Raises UserError for an unknown name (with the nearest one), or a value of another type or range.
    """
    return cast("RunConfig", validated(RunConfig, values, owner))


def complete_from_dict(values: Mapping[str, Any], owner: str) -> RunConfig:
    """Make settings of plain data that must hold every one, as the file of a run does. Raises UserError."""
    config, given = from_dict(values, owner), by_dotted_name(values)
    for name in by_dotted_name(to_dict(RunConfig())):
        if name not in given:
            raise UserError(f"{owner}{name} is missing; the file of a run states every setting")
    return config


def by_dotted_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name, as loader.views; the values of a free mapping stay together."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        group = isinstance(value, dict) and key not in _MAPPINGS
        flat.update({f"{key}.{inner}": v for inner, v in value.items()} if group else {key: value})
    return flat


def flat(settings: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Return settings by dotted name, those of free mappings as well."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{section}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return found


def with_changes(config: RunConfig, changes: Mapping[str, Any], owner: str) -> RunConfig:
    """Return the settings with other values, by dotted name. Raises UserError for a wrong name, type or range."""
    values = to_dict(config)
    for dotted, value in changes.items():
        *sections, name = dotted.split(".")
        place = values
        for section in sections:
            inner = place.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"{owner}{dotted}: {section} is not a group of settings")
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
    """Read the settings in a YAML file, not yet checked. Paths that begin with ./ or ../ are relative to the file.

    Raises UserError for a file that cannot be read, or that holds no settings.
    """
    try:
        values = load_yaml(read_text(path))
    except Exception as error:  # YAML raises many kinds
        reason = " ".join(str(error).split()) or first_line(error)
        raise UserError(f"{str(path)!r} cannot be read as YAML: {reason}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{str(path)!r} holds {type(values).__name__}; it must hold settings, such as `epochs: 10`")
    return with_paths(
        values, lambda value: os.path.normpath(path.parent / value) if value.startswith(("./", "../")) else value
    )


def with_paths(values: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return settings, as plain data, with every path in them changed."""
    changed = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for name in PATHS:
        section, _, key = name.rpartition(".")
        place = changed.get(section) if section else changed
        if isinstance(place, dict) and key in place:
            place[key] = _changed(name, place[key], change)
    return changed


def with_read_paths(config: RunConfig, change: Callable[[str], str]) -> dict[str, Any]:
    """Return a run's settings as plain data, with every path changed that the run reads or writes."""
    changed = with_paths(to_dict(config), change)
    if not any((data or "").startswith(_TORCH) for data in (config.data, config.probe_data, config.loader.unlabelled)):
        changed["loader"]["root"] = config.loader.root
    return changed


def _changed(name: str, value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_changed(name, one, change) for one in value]
    if not isinstance(value, str) or value in _WORDS.get(name, ()):
        return value
    if name in ("data", "probe_data", "loader.unlabelled") and value.startswith(SETS):
        return value
    return change(value)
