"""Where a command prints: results to stdout, progress to stderr."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def consoles() -> "tuple[Console, Console]":
    """Return the consoles of results and of progress."""
    from rich.console import Console

    return Console(emoji=False), Console(stderr=True, emoji=False)


def show_run(out: Path) -> int:
    """Print the scores of a finished run and where its files are, in the first process. Returns the exit code."""
    from crossdistill.report.page import PAGE_NAME, neighbours_table, run_table
    from crossdistill.report.records import read_run
    from crossdistill.report.tables import show
    from crossdistill.training.engine import is_first_process

    if is_first_process():
        result, _ = consoles()
        run = read_run(out)
        for table in (run_table(run), neighbours_table(run)):
            if table is not None:
                show(table, result)
        result.print(f"run: {out}\nreport: {out / PAGE_NAME}", soft_wrap=True, highlight=False, markup=False)
    return 0
