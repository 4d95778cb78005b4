"""`crossdistill eval`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import Namespace

from crossdistill.commands._run import RunParser
from crossdistill.commands._show import consoles
from crossdistill.config import RunConfig
from crossdistill.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

ABOUT = "Score a finished run, or a model by name with its weights, on a split of its data or of another set."
_LOADER = ("batch_size", "workers", "val_fraction", "split_seed", "max_train", "root", "labels")
LAYOUT = ("image_column", "label_column", "on_bad_image", "train_dir", "val_dir", "test_dir", "download", "in_chans")
_READS = [
    *("data", "trust_code", "img_size", "model.stem", "model.student_args", "model.student_checkpoint_key"),
    *("model.student_pretrained", "model.student_stages"),
    *("augment.crop_pct", "augment.crop_mode"),
    *(f"loader.{name}" for name in (*_LOADER, *LAYOUT)),
    *("engine.accelerator", "engine.threads"),
]
_BY_NAME = ("recipe", "checkpoint", "img_size", "model")
"""Options that only a model given by its name has; a run has them in its folder."""
_NOT_SEGMENTED = ("split", "knn", "linear_probe", "corruptions", "ood", "data")
"""Options that --segmentation does not read: it has images of its own."""


def run(argv: Sequence[str]) -> int:
    """Score a model."""
    parser = _parser()
    _, made = parser.read_run(argv, again=True)
    # A run is scored with its own settings: the same data, the same held-out split.
    base = run_settings(made.scored, parser.given(argv)) if Path(made.scored).is_dir() else None
    config, made = _parser().read_run(argv, base)
    from crossdistill.report.page import accuracy_table, corruption_table
    from crossdistill.report.tables import show
    from crossdistill.training.score import score

    result, progress = consoles()
    _check_segmentation(made.segmentation is not None, parser.given(argv))
    if made.segmentation is not None:
        return _segment(made, config, result, progress)
    probes = [name for name in ("knn", "linear_probe") if made[name]]
    scores = score(
        made.scored,
        config,
        progress,
        split=made.split,
        checkpoint=made.checkpoint,
        probes=probes,
        corruptions=made.corruptions,
        ood=made.ood,
    )
    if made.json:
        print(json.dumps(scores, indent=2))
    else:
        show(accuracy_table({f"model ({made.scored})": scores}, made.split), result)
        if made.corruptions:
            show(corruption_table(scores["corruptions"]), result)
    return 0


def _check_segmentation(wanted: bool, given: Sequence[str]) -> None:
    """Raise UserError for options that would have no effect beside --segmentation, or without it."""
    wrong = [name for name in given if name in (_NOT_SEGMENTED if wanted else ("stage",))]
    if wrong:
        option = wrong[0].replace("_", "-")
        raise UserError(f"--{option} {'has no effect with' if wanted else 'is for'} --segmentation; leave it out")


def _segment(made: Namespace, config: RunConfig, result: "Console", progress: "Console") -> int:
    from crossdistill.report.tables import TextTable, show
    from crossdistill.training.segment import segmentation_score

    found = segmentation_score(
        made.scored, config, progress, folder=made.segmentation, stage=made.stage, checkpoint=made.checkpoint
    )
    if made.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    header = ["", "mIoU, %", "pixels correct, %", "images", "cells"]
    row = [f"model ({made.scored})", f"{found.miou:.2f}", f"{found.pixel_accuracy:.2f}", f"{found.images:,}"]
    title = f"Linear segmentation from stage {made.stage}"
    show(TextTable(title, header, [[*row, f"{found.grid[0]}x{found.grid[1]}"]]), result)
    return 0


def _parser() -> RunParser:
    parser = RunParser("eval", ABOUT, reads=_READS)
    parser.add_argument("scored", metavar="MODEL", type=str, help="Folder of a finished run, or a model's name.")
    parser.add_argument("--split", type=str, default="test", help="train, val or test.")
    parser.add_argument("--checkpoint", type=str | None, default=None, help="Weights of a model given by name.")
    parser.add_argument("--knn", action="store_true", help="Score the embedding by its 20 nearest neighbours as well.")
    parser.add_argument(
        "--linear_probe", action="store_true", help="Score the embedding by a linear classifier fitted on it as well."
    )
    add_robustness(parser)
    parser.add_argument(
        "--segmentation",
        metavar="FOLDER",
        type=str | None,
        default=None,
        help="Score a linear segmentation from a stage map instead, on a folder of images and masks.",
    )
    parser.add_argument("--stage", type=Literal[1, 2, 3, 4], default=4, help="Stage map of --segmentation.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    return parser


def add_robustness(parser: RunParser) -> None:
    """Add the options that measure what accuracy does not: corrupted images, and images of no class."""
    parser.add_argument(
        "--corruptions", action="store_true", help="Score corrupted images as well: noise, blur, JPEG and others."
    )
    parser.add_argument(
        "--ood",
        metavar="DATA",
        type=str | None,
        default=None,
        help="Images of no class of the model: how well the largest logit tells them from the scored ones.",
    )


def run_settings(folder: str, given: Sequence[str]) -> RunConfig:
    """Read the settings of a run. Raises UserError for options that its folder decides."""
    from crossdistill.training.run_folder import read_config

    for name in given:
        if name.partition(".")[0] in _BY_NAME:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is for a model given by its name; {folder!r} is a run, which has its own")
    # The method is not used, and may be code.
    return replace(read_config(Path(folder)), method="none", options={})
