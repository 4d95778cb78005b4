"""The arguments that a backbone is built from, as an exported student keeps them."""

from dataclasses import field
from pathlib import Path
from typing import Any

from crossdistill.config.code import is_source
from crossdistill.config.model import DECIDED_BY_SETTINGS
from crossdistill.config.validation import NonNegativeInt, PositiveInt, settings, validated
from crossdistill.errors import UserError, first_line
from crossdistill.files import file_digest, missing_of_run, parse_json, read_plain
from crossdistill.image_size import OptionalImageSize

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "student.safetensors"
HUB_WEIGHTS_FILE = "model.safetensors"
"""Name of the weights in a folder that is exported for timm, which expects this one in a repository of a hub."""
_RESERVED = (
    *DECIDED_BY_SETTINGS,
    *("cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "weights", "weights_backbone"),
    *("scriptable", "exportable", "no_jit"),
)
"""Arguments of `create_backbone`, and those by which timm and torchvision find weights."""


@settings
class BackboneArgs:
    """Arguments of `create_backbone`, without the weights."""

    name: str
    num_classes: NonNegativeInt
    img_size: OptionalImageSize = None
    in_chans: PositiveInt = 3
    small_images: bool = False
    stages: list[str] | None = None
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's constructor."""


def read_args(folder: str | Path) -> BackboneArgs:
    """Read the arguments that the student of a finished run was built with. Raises UserError."""
    stored = read_stored(folder).get("crossdistill")
    owner = f"{str(Path(folder) / CONFIG_FILE)!r} was not written by crossdistill, or is damaged: "
    args: BackboneArgs = validated(BackboneArgs, stored, owner)
    _check_stored(args, owner)
    return args


def _check_stored(args: BackboneArgs, owner: str) -> None:
    """Raise UserError for arguments that a stranger's file must not decide: they are not those of a constructor."""
    if place := next((name for name in (args.name, args.model_args.get("base")) if is_source(str(name))), None):
        raise UserError(
            f"{owner}it names {place!r}, a folder or a repository that would be read; a run states the architecture"
        )
    if wrong := next((name for name in args.model_args if name in _RESERVED), None):
        raise UserError(f"{owner}model_args: {wrong!r} is not an argument that a network is built with")


def read_class_names(folder: str | Path) -> tuple[str, ...] | None:
    """Read the class names of a finished run, in the order of its logits; None where it has none. Raises UserError."""
    stored = read_stored(folder).get("label_names")
    names = validated(list[str] | None, stored, f"{str(Path(folder) / CONFIG_FILE)!r} is damaged: label_names: ")
    if twice := next((name for name in names or () if (names or []).count(name) > 1), None):
        raise UserError(f"{str(Path(folder) / CONFIG_FILE)!r} is damaged: it names the class {twice!r} twice")
    return None if names is None else tuple(names)


def weights_path(folder: str | Path) -> Path:
    """Return the exported weights in a folder: those of a run, or of an export for timm."""
    path = Path(folder) / WEIGHTS_FILE
    other = Path(folder) / HUB_WEIGHTS_FILE
    return other if other.is_file() and not path.is_file() else path


def weights_digest(folder: str | Path) -> str:
    """Return the SHA-256 of a run's exported weights."""
    return file_digest(weights_path(folder))


def check_export(folder: str | Path) -> None:
    """Raise UserError where the exported weights are not those that the run wrote."""
    stated = read_stored(folder).get("weights_sha256")
    path = weights_path(folder)
    if stated is not None and path.is_file() and weights_digest(folder) != stated:
        raise UserError(
            f"{str(path)!r} was changed after it was written (its checksum differs); restore it from a copy"
        )


def read_stored(folder: str | Path) -> dict[str, Any]:
    """Read the `config.json` of a finished run. Raises UserError where it is missing or damaged."""
    path = Path(folder) / CONFIG_FILE
    try:
        stored = parse_json(read_plain(path))
    except FileNotFoundError as error:
        raise missing_of_run(folder, CONFIG_FILE) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder)!r} is not a finished run: {CONFIG_FILE}: {first_line(error)}") from error
    if not isinstance(stored, dict):
        raise UserError(f"{str(folder)!r} is not a finished run: {CONFIG_FILE} holds no settings")
    return stored
