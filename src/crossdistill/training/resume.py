"""What is checked before an interrupted run is continued."""

from pathlib import Path

from rich.console import Console

from crossdistill.config import RunConfig
from crossdistill.data import ImageData
from crossdistill.distiller import Distiller
from crossdistill.errors import UserError
from crossdistill.training.checkpoints import BEFORE, BEST, CHECKPOINTS, LAST, best_problem, find_checkpoint
from crossdistill.training.checks import check_settings
from crossdistill.training.inputs import decide
from crossdistill.training.run_folder import (
    check_files,
    check_global_batch,
    check_inputs,
    check_unchanged,
    read_continued,
)


def check_resumed(config: RunConfig, inputs: dict[str, str], out: Path, data: ImageData, processes: int) -> None:
    """Check that a run can be continued with these settings and this data. Raises UserError."""
    before = read_continued(out, config)
    before, _ = decide(before, check_settings(before), data)
    check_unchanged(before, config, other_devices=True)
    check_files(out, data.changes)
    check_inputs(out, inputs)
    if any((out / CHECKPOINTS / name).exists() for name in (LAST, BEFORE)):
        check_global_batch(out, before.loader.batch_size, config.loader.batch_size, processes)


def read_checkpoint(out: Path, identity: str, distiller: Distiller, console: Console) -> Path | None:
    """Return the checkpoint that a run continues from; None where it has none yet. Raises UserError for damage."""
    trained = {f"distiller.{name}": value for name, value in distiller.state_dict().items()}
    checkpoint = find_checkpoint(out, identity, trained, console)
    best = out / CHECKPOINTS / BEST
    if checkpoint is not None and best.exists() and (problem := best_problem(best.parent, identity)):
        raise UserError(f"{problem}: delete the folder {str(best.parent)!r} to train the run from its start")
    return checkpoint
