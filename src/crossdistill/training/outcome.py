"""What a comparison has found so far: the table, the page, and what failed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from crossdistill.errors import UserError, kind_and_line
from crossdistill.methods import NONE
from crossdistill.report.comparison import short_table, unread_inspections, write_comparison_page
from crossdistill.report.groups import Group
from crossdistill.report.inspection import INSPECTION_NAME
from crossdistill.report.records import METRICS_NAME, RunRecord, read_run
from crossdistill.report.tables import TextTable
from crossdistill.training.grid import Cell
from crossdistill.training.inspect import MOST_IMAGES, inspect_run
from crossdistill.training.results import Failures, write_results
from crossdistill.training.run_folder import read_continued


@dataclass(frozen=True)
class Outcome:
    """A comparison as far as it is finished; table and page are None before the first run is."""

    table: TextTable | None
    page: Path | None
    failures: dict[str, str]
    """Reasons, by the folder of the run."""
    missing: int
    """Number of runs that are neither finished nor failed."""
    notes: list[str] = field(default_factory=list)
    """What the page leaves out, and why."""


def make_outcome(cells: Sequence[Cell], out: Path, failures: Failures) -> Outcome:
    """Write the page and the table of results, of all runs in `out` that are finished."""
    finished = [cell for cell in cells if (out / cell.folder / METRICS_NAME).exists()]
    runs: dict[str, list[RunRecord]] = {}
    for cell in finished:
        runs.setdefault(cell.label, []).append(read_run(out / cell.folder))
    groups = {label: Group(label, tuple(members)) for label, members in runs.items()}
    plain = {(cell.student, cell.setting): cell.label for cell in cells if cell.variant.method == NONE}
    for cell in finished:
        base = plain.get((cell.student, cell.setting), plain.get((cell.student, "")))
        if base in groups and base != cell.label:
            groups[cell.label] = replace(groups[cell.label], base=groups[base])
    failed = {cell.folder: reason for cell in cells if (reason := failures.of(cell.folder))}
    missing = len({cell.folder for cell in cells} - {cell.folder for cell in finished} - set(failed))
    write_results(out, cells, failures)
    if not groups:
        return Outcome(None, None, failed, missing)
    shown = list(groups.values())
    page = write_comparison_page(out, shown, failed)
    return Outcome(short_table(shown), page, failed, missing, unread_inspections(shown))


def inspect_groups(cells: Sequence[Cell], out: Path, console: Console, *, trust_code: bool) -> None:
    """Inspect the first finished run of each kind that has none that was inspected. One that cannot be is named."""
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        if (out / cell.folder / METRICS_NAME).exists():
            kinds.setdefault(cell.label, []).append(cell)
    for kind in kinds.values():
        folder = out / kind[0].folder
        if any((out / cell.folder / INSPECTION_NAME).exists() for cell in kind):
            continue
        console.print(f"inspecting {folder.name}", highlight=False, markup=False, soft_wrap=True)
        try:
            # Read as the run is continued: code that the command does not name is refused.
            stored = read_continued(folder, kind[0].config)
            config = replace(stored, engine=kind[0].config.engine, trust_code=trust_code)
            inspect_run(str(folder), config, console, images=MOST_IMAGES)
        except Exception as error:  # the table is shown whatever it is
            why = str(error) if isinstance(error, UserError) else kind_and_line(error)
            console.print(f"{folder.name} is not inspected: {why}", highlight=False, markup=False, soft_wrap=True)
