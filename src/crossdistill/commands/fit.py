"""`crossdistill fit`."""

import os
from collections.abc import Sequence
from pathlib import Path

from crossdistill.commands._run import RunParser, first_look
from crossdistill.commands._show import consoles, show_run
from crossdistill.config import RunConfig

ABOUT = "Distil a teacher into a student, or train it on the labels alone with --method none."


def run(argv: Sequence[str]) -> int:
    """Train a student."""
    parser = RunParser("fit", ABOUT, unread=("teacher_training",))
    add_resume(parser)
    stored = stored_config(argv)
    config, made = parser.read_run(argv, stored)
    from crossdistill.training.fit import fit

    _, progress = consoles()
    return show_run(fit(config, resume=made.resume or stored is not None, console=progress))


def add_resume(parser: RunParser) -> None:
    """Add the flag that continues a run."""
    help = "Continue the run in --out, with the settings stored there."
    parser.add_argument("--resume", action="store_true", help=help)


def stored_config(argv: Sequence[str]) -> RunConfig | None:
    """Read the settings of the run that is to be continued; None where a new run begins. Raises UserError.

    A command that SLURM or torchrun has started again continues what its first start left.
    """
    first = first_look(argv)
    restarted = any(int(os.environ.get(n, "0")) > 0 for n in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    if not (first.resume or restarted) or first.out is None or not (Path(first.out) / "config.yaml").is_file():
        return None
    from crossdistill.training.run_folder import read_config

    return read_config(Path(first.out))
