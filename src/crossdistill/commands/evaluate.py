"""`crossdistill eval`."""

import json
from collections.abc import Sequence
from pathlib import Path

from crossdistill.commands._run import RunParser
from crossdistill.commands._show import consoles

ABOUT = "Score a finished run, or a model by name with a checkpoint, on a split of its data or of another set."
_LOADER = ("batch_size", "workers", "val_fraction", "split_seed", "max_train", "image_column", "label_column", "root")
_READS = [
    *("data", "img_size", "model.stem", "model.student_args", "augment.crop_pct"),
    *(f"loader.{name}" for name in (*_LOADER, "download", "in_chans")),
    *("engine.accelerator", "engine.threads"),
]


def run(argv: Sequence[str]) -> int:
    """Score a model."""
    parser = RunParser("eval", ABOUT, reads=_READS)
    parser.add_argument("scored", metavar="MODEL", type=str, help="Folder of a finished run, or a model's name.")
    parser.add_argument("--split", type=str, default="test", help="train, val or test.")
    parser.add_argument("--checkpoint", type=str | None, default=None, help="Weights of a model given by name.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    folder = next((Path(word) for word in argv if (Path(word) / "config.yaml").is_file()), None)
    base = None
    if folder is not None and "-h" not in argv and "--help" not in argv:
        from crossdistill.training.run_folder import read_config

        # A run is scored with its own settings: the same data, the same held-out split.
        base = read_config(folder)
    config, made = parser.read_run(argv, base)
    from crossdistill.report.page import accuracy_table
    from crossdistill.report.tables import show
    from crossdistill.training.score import score

    scores = score(made.scored, config, split=made.split, checkpoint=made.checkpoint)
    if made.json:
        print(json.dumps(scores, indent=2))
    else:
        show(accuracy_table([(made.split, {"name": made.scored, "test": scores})]), consoles()[0])
    return 0
