"""`crossdistill inspect`."""

from collections.abc import Sequence
from pathlib import Path

from crossdistill.commands._parser import check_positive
from crossdistill.commands._run import RunParser
from crossdistill.commands._show import consoles
from crossdistill.commands.evaluate import LAYOUT, add_robustness, run_settings
from crossdistill.errors import UserError

ABOUT = "Look into a finished run: how alike student and teacher are, what the student confuses, and where it looks."
_LOADER = ("batch_size", "workers", "val_fraction", "split_seed", "max_train", "root", *LAYOUT)
_READS = ["data", "trust_code", "engine.accelerator", "engine.threads", *(f"loader.{name}" for name in _LOADER)]


def run(argv: Sequence[str]) -> int:
    """Inspect a run, and add what is found to its page."""
    parser = _parser()
    _, made = parser.read_run(argv, again=True)
    check_positive(made, ("images",))
    if not Path(made.inspected).is_dir():
        raise UserError(f"{made.inspected!r} is not the folder of a run")
    config, made = _parser().read_run(argv, run_settings(made.inspected, parser.given(argv)))
    from crossdistill.report.inspected import Inspected, inspected_tables
    from crossdistill.report.page import PAGE_NAME
    from crossdistill.report.tables import show
    from crossdistill.training.inspect import inspect_run

    result, progress = consoles()
    asked = dict(images=made.images, corruptions=made.corruptions, ood=made.ood)
    found = inspect_run(made.inspected, config, progress, **asked)
    for table in inspected_tables([Inspected("student", "teacher", found)]):
        show(table, result)
    page = Path(made.inspected) / PAGE_NAME
    result.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _parser() -> RunParser:
    parser = RunParser("inspect", ABOUT, reads=_READS)
    parser.add_argument("inspected", metavar="RUN", type=str, help="Folder of a finished run.")
    parser.add_argument("--images", type=int, default=512, help="Most test images to look at.")
    add_robustness(parser)
    return parser
