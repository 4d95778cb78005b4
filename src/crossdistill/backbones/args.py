"""The arguments that a backbone is built from, as an exported student keeps them."""

import json
from dataclasses import field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from crossdistill.config.validation import (
    CHECKED,
    NonNegativeInt,
    OptionalPositiveInt,
    PositiveInt,
    plain,
)
from crossdistill.errors import UserError, first_line

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "student.safetensors"


@dataclass(frozen=True, config=CHECKED)
class BackboneArgs:
    """Arguments of `create_backbone`, without the weights."""

    name: str
    num_classes: NonNegativeInt
    img_size: OptionalPositiveInt = None
    in_chans: PositiveInt = 3
    small_images: bool = False
    stages: list[str] | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's constructor."""


def read_args(folder: str | Path) -> BackboneArgs:
    """Read the arguments that the student of a finished run was built with. Raises UserError."""
    path = Path(folder) / CONFIG_FILE
    try:
        return TypeAdapter(BackboneArgs).validate_python(_read_export(folder).get("crossdistill"))
    except ValidationError as error:
        raise UserError(f"{str(path)!r} was not written by crossdistill, or is damaged: {plain(error)}") from error


def read_class_names(folder: str | Path) -> tuple[str, ...] | None:
    """Read the class names of a finished run, in the order of its logits; None where it has none. Raises UserError."""
    path = Path(folder) / CONFIG_FILE
    try:
        names = TypeAdapter(list[str] | None).validate_python(_read_export(folder).get("label_names"))
    except ValidationError as error:
        raise UserError(f"{str(path)!r} is damaged: label_names: {plain(error)}") from error
    return None if names is None else tuple(names)


def _read_export(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / CONFIG_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder)!r} is no finished run: {CONFIG_FILE}: {first_line(error)}") from error
    if not isinstance(stored, dict):
        raise UserError(f"{str(folder)!r} is no finished run: {CONFIG_FILE} holds no settings")
    return stored
