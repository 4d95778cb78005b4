"""`crossdistill report`."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crossdistill.commands._parser import Parser
from crossdistill.commands._show import consoles

ABOUT = "Compare finished runs, wherever they are: a table, and one page that needs no network."
if TYPE_CHECKING:
    from crossdistill.report.records import RunRecord

_FORMATS = ("table", "markdown", "latex", "csv")


def run(argv: Sequence[str]) -> int:
    """Write the page of some runs, and print their table."""
    parser = Parser("report", ABOUT)
    parser.usage = "crossdistill report FOLDER [FOLDER ...] [options]"
    parser.add_argument(
        "folders", metavar="FOLDER", type=str, nargs="+", help="A run, or a folder that holds runs (of `compare`)."
    )
    parser.add_argument("--out", type=str, default="runs/report", help="Folder of the page.")
    parser.add_argument("--format", choices=_FORMATS, default="table", help="How the table is printed.")
    made = parser.read(argv)
    from crossdistill.errors import UserError
    from crossdistill.files import make_folder
    from crossdistill.report.comparison import full_table, unread_inspections, write_comparison_page
    from crossdistill.report.groups import find_failures, find_runs, group_runs
    from crossdistill.report.records import METRICS_NAME
    from crossdistill.report.tables import as_csv, as_latex, as_markdown, show
    from crossdistill.training.run_folder import check_writable

    out = Path(made.out)
    if (out / METRICS_NAME).exists():
        raise UserError(f"{str(out)!r} is the folder of a run, which has a page of its own; choose another --out")
    runs = _compared(find_runs(Path(folder) for folder in made.folders))
    groups = group_runs(runs)
    shown = {run.folder for group in groups for run in group.runs}
    _name_left_out("that repeat another", (run for run in runs if run.folder not in shown))
    check_writable(out)
    make_folder(out)
    page = write_comparison_page(out, groups, find_failures(map(Path, made.folders)))
    result, progress = consoles()
    for note in unread_inspections(groups):
        progress.print(f"crossdistill: note: {note}", soft_wrap=True, highlight=False, markup=False)
    table = full_table(groups)
    if made.format == "table":
        show(table, result)
    else:
        print({"markdown": as_markdown, "latex": as_latex, "csv": as_csv}[made.format](table))
    progress.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _compared(found: "Sequence[RunRecord]") -> "list[RunRecord]":
    """Return the runs that share a measure, and name the others. Raises UserError where no run has a score."""
    from crossdistill.errors import UserError
    from crossdistill.report.measure import NEIGHBOURS, TOP1, measure_of

    measured = [(run, measure_of(run)) for run in found]
    compared = TOP1 if any(measure == TOP1 for _, measure in measured) else NEIGHBOURS
    runs = [run for run, measure in measured if measure == compared]
    if not runs:
        raise UserError(
            "none of these runs has a score on a test split: they are teachers, or were trained without labels and "
            "without --probe-data"
        )
    unscored = [run for run, measure in measured if measure is None]
    _name_left_out("of teachers", (run for run in unscored if run.role != "student"))
    _name_left_out("without a score on a test split", (run for run in unscored if run.role == "student"))
    others = (run for run, measure in measured if measure not in (None, compared))
    _name_left_out("without labels, which have no accuracy (give `report` those alone)", others)
    return runs


def _name_left_out(why: str, runs: Iterable["RunRecord"]) -> None:
    if names := [str(run.folder) for run in runs]:
        print(f"note: left out are runs {why}: {', '.join(names)}", file=sys.stderr)
