"""What is checked before an interrupted run is continued."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from crossdistill.config import RunConfig
from crossdistill.data import ImageData
from crossdistill.errors import UserError, kind_and_line
from crossdistill.training.inputs import decide
from crossdistill.training.models import check_settings
from crossdistill.training.run_folder import (
    CHECKPOINTS,
    LAST,
    check_files,
    check_global_batch,
    check_inputs,
    check_unchanged,
    read_config,
)

_AGAIN = "delete it to start the run again"
_PARTS = ("state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers", "pytorch-lightning_version")
"""What Lightning stores to continue a run; without its loops it would silently start again at the first epoch."""


def check_resumed(config: RunConfig, inputs: dict[str, str], out: Path, data: ImageData, processes: int) -> Path | None:
    """Check that a run can be continued, and return its last checkpoint if it has one. Raises UserError."""
    before = read_config(out)
    before, _ = decide(before, check_settings(before), data)
    check_unchanged(before, config, other_devices=True)
    check_files(out, data.changes)
    check_inputs(out, inputs)
    last = out / CHECKPOINTS / LAST
    if not last.exists():
        return None
    check_global_batch(out, before.loader.batch_size, config.loader.batch_size, processes)
    stored = _read(last)
    absent = [name for name in _PARTS if name not in stored]
    if absent:
        raise UserError(f"{str(last)!r} is damaged: it has no {absent[0]}; {_AGAIN}")
    return last


def check_weights(checkpoint: Path, module: nn.Module) -> None:
    """Raise UserError where the weights in a checkpoint are not those of the module."""
    stored = {name: tuple(value.shape) for name, value in _read(checkpoint)["state_dict"].items()}
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in {**expected, **stored}:
        if stored.get(name) == expected.get(name):
            continue
        what = f"{name} has the shape {stored[name]}" if name in stored else f"it has no {name}"
        model = f"{expected[name]}" if name in expected else "no such weight"
        raise UserError(f"{str(checkpoint)!r} is damaged: {what}, the run's model has {model}; {_AGAIN}")


def _read(path: Path) -> dict[str, Any]:
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{str(path)!r} cannot be read; is it truncated? ({kind_and_line(error)})") from error
    if not isinstance(stored, dict):
        raise UserError(f"{str(path)!r} is damaged: it does not hold a checkpoint; {_AGAIN}")
    return stored
