"""`crossdistill fit`."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from crossdistill.commands._parser import given_value
from crossdistill.commands._run import RunParser, read_early_flags
from crossdistill.commands._show import consoles, show_run
from crossdistill.config import RunConfig
from crossdistill.config.code import check_named_code, code_of
from crossdistill.errors import UserError

ABOUT = "Distil a teacher into a student, or train it on the labels alone with --method none."


def run(argv: Sequence[str]) -> int:
    """Train a student."""
    parser = RunParser("fit", ABOUT, unread=("teacher_training",))
    add_resume(parser)
    stored, resume = read_resumed(argv)
    config, _ = parser.read_run(argv, stored)
    from crossdistill.training.fit import fit

    _, progress = consoles()
    return show_run(fit(config, resume=resume, console=progress))


def add_resume(parser: RunParser) -> None:
    """Add the flag that continues a run."""
    help = (
        "Continue the run in --out with the settings stored there; where --recipe is given, with those of the recipe, "
        "which must be the same."
    )
    parser.add_argument("--resume", action="store_true", help=help)


def read_resumed(argv: Sequence[str]) -> tuple[RunConfig | None, bool]:
    """Return the settings of the run that is to be continued, and whether one is. Raises UserError.

    The settings are None where a run begins, and where `--recipe` names them. A command that SLURM or torchrun has
    started again continues what its first start left.
    """
    early = read_early_flags(argv)
    restarted = any(int(os.environ.get(n, "0")) > 0 for n in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    exists = early.out is not None and (Path(early.out) / "config.yaml").is_file()
    if early.resume and early.out is not None and not exists:
        raise UserError(f"{early.out!r} does not hold a run to resume")
    if not exists or not (early.resume or restarted):
        return None, early.resume
    if early.recipe is not None:
        return None, True
    from crossdistill.training.run_folder import read_config

    stored = read_config(Path(early.out))
    trust = (given_value(argv, "trust_code") or "").lower() == "true"
    check_named_code(code_of(stored), str(Path(early.out) / "config.yaml"), _given_names(argv), trust=trust)
    if stored.engine.channels_last is True:
        # What "auto" decides, except where the run is continued with sharded weights.
        stored = replace(stored, engine=replace(stored.engine, channels_last="auto"))
    return stored, True


def _given_names(argv: Sequence[str]) -> list[str]:
    """Return the names of models and methods on the command line; a list, or a sum of methods, is taken apart."""
    texts = [given_value(argv, option) or "" for option in ("student", "teacher", "method")]
    return [name for text in texts for name in re.split(r"[\[\],+'\"\s]+", text) if name]
