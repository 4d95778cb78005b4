"""`crossdistill check`."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from crossdistill.commands._run import RunParser
from crossdistill.commands._show import consoles

ABOUT = "Print what would be read of a data set, and all that looks wrong in it, without training."
_LOADER = ("val_fraction", "split_seed", "max_train", "image_column", "label_column", "root", "download", "in_chans")
_READS = [f"loader.{name}" for name in (*_LOADER, "labels", "unlabelled", "train_dir", "val_dir", "test_dir")]


def run(argv: Sequence[str]) -> int:
    """Check a data set. Returns 0 where a run can read it, 2 where some of its images cannot be read."""
    parser = RunParser("check", ABOUT, reads=_READS)
    parser.add_argument("checked", metavar="DATA", type=str, help="As for --data of the other commands.")
    config, made = parser.read_run(argv)
    from crossdistill.data import load_data

    result, _ = consoles()
    found = load_data(made.checked, replace(config.loader, on_bad_image="skip"), most_bytes=sys.maxsize)
    for line in found.about:
        result.print(line, highlight=False, markup=False, soft_wrap=True)
    if not found.unreadable:
        return 0
    result.print(
        f"{found.unreadable:,} images cannot be read: a run refuses them, or leaves them out with "
        "--loader.on-bad-image skip",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 2
