"""`crossdistill predict`. An ONNX file is run without importing torch."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crossdistill.commands._parser import Parser, check_positive
from crossdistill.commands._show import consoles
from crossdistill.config.validation import MOST_THREADS
from crossdistill.errors import UserError

if TYPE_CHECKING:
    from crossdistill.export.predict import Model

ABOUT = "Print the classes that a run's student, or an ONNX file, finds in images."
SKIPPED = 3
"""Exit code where some files could not be read, and the others were predicted."""


def run(argv: Sequence[str]) -> int:
    """Predict. Returns 0, or 3 where files were skipped."""
    made = _parser().read(argv)
    check_positive(made, ("top_k", "batch_size", "workers", "threads"))
    for name in ("workers", "threads"):
        if made[name] is not None and made[name] > MOST_THREADS:
            raise UserError(f"--{name} is {made[name]}; it must be at most {MOST_THREADS}")
    from crossdistill.export.embedding_file import check_target
    from crossdistill.export.predict import Predictions, found_files, predict

    target = None if made.embedding is None else check_target(Path(made.embedding))
    _, progress = consoles()
    files = found_files(made.images, progress)
    model = _load(made)
    names = model.class_names
    if not names and made.embedding is None:
        raise UserError(
            f"{made.model!r} has no classifier, so there are no classes to print: write its embeddings with "
            "--embedding FILE.npy, or train a classifier (crossdistill fit --model.new-head true)"
        )
    try:
        with Predictions(made.format, names, made.top_k, target, sys.stdout) as written:
            skipped = predict(model, files, made.batch_size, made.workers, written.add, progress)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has what it asked for; Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    if skipped:
        text = f"crossdistill: {skipped:,} of {len(files):,} files could not be read and were skipped"
        progress.print(text, highlight=False, markup=False, soft_wrap=True)
    return SKIPPED if skipped else 0


def _parser() -> Parser:
    parser = Parser("predict", ABOUT)
    add = parser.add_argument
    add("model", metavar="MODEL", type=str, help="Folder of a run or of an export, or an ONNX file of an export.")
    add(
        "images",
        metavar="IMAGES",
        type=str,
        nargs="+",
        help="Files, folders (at any depth), patterns such as 'photos/**/*.jpg', or - for a list of these in the lines "
        "of stdin.",
    )
    add("--top_k", type=int, default=5, help="Classes for each image, the most probable first.")
    add(
        "--format",
        type=Literal["table", "jsonl", "csv"],
        default="table",
        help="table; jsonl (one JSON object a line) and csv are written while images are read.",
    )
    add(
        "--embedding",
        metavar="FILE",
        type=str | None,
        default=None,
        help="Write the embeddings: .npy or .parquet.",
    )
    add("--batch_size", type=int, default=32, help="Images in one forward pass.")
    add("--workers", type=int, default=4, help="Threads that decode images.")
    add("--threads", type=int | None, default=None, help="CPU threads of the model; null for its default.")
    add("--accelerator", type=Literal["auto", "cpu", "gpu"], default="auto", help="Where a run's student is run.")
    add("--trust_code", type=bool, default=False, help="Import code that a run's files name (see docs/security.md).")
    return parser


def _load(made: Any) -> "Model":
    """Open the model. Raises UserError."""
    from crossdistill.export.about import PROGRAM_FILE
    from crossdistill.export.onnx_session import OnnxModel, find_onnx

    path = find_onnx(made.model)
    if path is not None:
        return OnnxModel(path, made.threads)
    if not Path(made.model).is_dir():
        raise UserError(f"{made.model!r} is neither the folder of a run nor an ONNX file")
    if (Path(made.model) / PROGRAM_FILE).is_file():
        raise UserError(
            f"{made.model!r} holds a program of torch.export; predict reads runs, and exports to onnx and timm"
        )
    from crossdistill.export.load import load_exported

    return load_exported(made.model, made.threads, accelerator=made.accelerator, trust_code=made.trust_code)
