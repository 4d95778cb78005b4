"""Checkpoints on disk: written whole, the one before kept, and checked when they are read back."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from torch import Tensor

from crossdistill.errors import UserError, first_line
from crossdistill.files import open_plain, remove, sync_folder

CHECKPOINTS = "checkpoints"
BEST, LAST, BEFORE = "best.ckpt", "last.ckpt", "last.before.ckpt"
_RUN, _FILE = "crossdistill_run", "crossdistill_file"
_KEYS: dict[str, type] = {
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "epoch": int,
    "global_step": int,
}
"""What Lightning writes into a checkpoint, and reads again."""


def run_identity(settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return a digest of what a run computes, which its checkpoints carry."""
    text = json.dumps([sorted(settings.items()), sorted(inputs.items())], default=str)
    # 1 and 1.0 are the same setting.
    return hashlib.sha256(json.dumps(json.loads(text, parse_int=float)).encode()).hexdigest()[:16]


class RunCheckpoints(TorchCheckpointIO):
    """Write checkpoints of the run `identity`, so that a crash leaves the old one or the new one.

    A file is written beside its place, synced and renamed; the last one before is kept as `last.before.ckpt`. Raises
    UserError where that fails; the old file stays.
    """

    def __init__(self, identity: str) -> None:
        super().__init__()
        self.identity = identity

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one checkpoint."""
        path = Path(path)
        content = io.BytesIO()
        torch.save({**checkpoint, _RUN: self.identity, _FILE: path.name}, content)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.exists():
                os.replace(path, path.with_name(BEFORE))
            os.replace(partial, path)
            sync_folder(path.parent)
        except OSError as error:
            remove(partial)
            raise UserError(
                f"cannot write {str(path)!r}: {error.strerror or error}; training stopped, and the checkpoint before "
                "it is kept: continue with --resume when the folder can be written again"
            ) from error


def find_checkpoint(out: Path, identity: str, expected: Mapping[str, Tensor], console: Console) -> Path | None:
    """Return the checkpoint that a run continues from: the last one, or the one before where that is damaged.

    `expected` holds the trained weights. None where the run has stored none yet. Raises UserError where none
    can be used.
    """
    problems: list[str] = []
    for path in (out / CHECKPOINTS / name for name in (LAST, BEFORE)):
        if not path.exists():
            continue
        problem = checkpoint_problem(path, identity, expected)
        if problem is None:
            for earlier in problems:
                rank_zero_only(console.print)(
                    f"note: {earlier}; the run continues from {path.name}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )
            if problems:
                # Otherwise the next save would put it in the place of the good one.
                _put_aside(out / CHECKPOINTS / LAST)
            return path
        problems.append(problem)
    if problems:
        raise UserError(
            f"{'; '.join(problems)}: restore the file from a copy, or delete the folder {str(out / CHECKPOINTS)!r} to "
            "train the run from its start"
        )
    return None


@rank_zero_only
def _put_aside(path: Path) -> None:
    os.replace(path, path.with_name("last.damaged.ckpt"))


def checkpoint_problem(path: Path, identity: str, expected: Mapping[str, Tensor] | None = None) -> str | None:
    """Return what is wrong with a checkpoint of the run `identity`; None where nothing is.

    Every byte is read and compared with its checksum. `expected` holds the weights that it must have.
    """
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return f"{str(path)!r} is damaged (the checksum of {damaged!r} differs)"
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged file can raise anything
        return f"{str(path)!r} is damaged ({first_line(error)})"
    if not isinstance(stored, dict) or any(key not in stored for key in (*_KEYS, _RUN, _FILE)):
        return f"{str(path)!r} is not a checkpoint of crossdistill"
    if wrong := next((key for key, kind in _KEYS.items() if not isinstance(stored[key], kind)), None):
        return f"{str(path)!r} is damaged (its {wrong} is a {type(stored[wrong]).__name__})"
    if stored[_RUN] != identity:
        return f"{str(path)!r} belongs to another run"
    if stored[_FILE] != (LAST if path.name == BEFORE else path.name):
        return f"{str(path)!r} is a copy of {stored[_FILE]!r}"
    if expected is not None:
        weights = stored["state_dict"]
        for name, value in expected.items():
            if not isinstance(weights.get(name), Tensor) or weights[name].shape != value.shape:
                return f"{str(path)!r} is damaged (its weight {name!r} is missing or of another shape)"
            if weights[name].layout != torch.strided or not weights[name].isfinite().all():
                return f"{str(path)!r} is damaged (its weight {name!r} is sparse, or holds numbers that are not finite)"
        if surplus := [name for name in weights if name.startswith("distiller.") and name not in expected]:
            return f"{str(path)!r} is damaged (the run has no weight {surplus[0]!r})"
    return None


def best_problem(folder: Path, identity: str) -> str | None:
    """Return what is wrong with the best checkpoint of a run, also where it is an older one of the run."""
    best, last = folder / BEST, folder / LAST
    if problem := checkpoint_problem(best, identity):
        return problem
    if last.exists() and checkpoint_problem(last, identity) is None:
        found, recorded = _best_score(best), _best_score(last)
        if found is not None and recorded is not None and found < recorded:
            return f"{str(best)!r} is not the best checkpoint of the run, but an older one"
    return None


def _best_score(path: Path) -> float | None:
    """Return the best score that a checkpoint knows of, so that larger is better; None where it states none."""
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for key, state in stored["callbacks"].items():
        known = "BestCheckpoint" in key and isinstance(state, dict) and state.get("monitor")
        if known and state.get("best_model_score") is not None:
            sign = -1 if "'mode': 'min'" in key else 1
            return sign * float(state["best_model_score"])
    return None
