"""Predictions for many files, read by threads and written while they are made. No torch."""

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image
from rich.console import Console

from crossdistill.data.picture import UnreadableError, read_picture
from crossdistill.data.tree import scan
from crossdistill.errors import UserError
from crossdistill.export.embedding_file import EmbeddingFile
from crossdistill.progress import ProgressReport
from crossdistill.report.tables import TextTable, show


class Model(Protocol):
    """A student in some form."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits; empty without a classifier."""
        ...

    def prepare(self, image: Image.Image) -> Any:
        """Return an image as an input of `run`."""
        ...

    def run(self, inputs: list[Any]) -> tuple[Any, Any]:
        """Return logits (B, K), or None, and embeddings (B, D)."""
        ...


def found_files(named: Sequence[str], console: Console) -> list[str]:
    """Return the files that words of the command line name, in order, each once. Raises UserError where one names none.

    A word is a file, a folder (all images in it, at any depth), a pattern, or "-" for words in the lines of stdin. A
    line of stdin that names nothing is kept: it is skipped like a file that cannot be read.
    """
    found: dict[str, None] = {}
    for word in named:
        if word != "-":
            found.update(dict.fromkeys(_files_of(word, console)))
            continue
        for line in sys.stdin.read().split("\n"):
            word = line.rstrip("\r")
            try:
                found.update(dict.fromkeys(_files_of(word, console) if word else ()))
            except UserError:
                found[word] = None
    if not found:
        raise UserError("no images were named: stdin is empty")
    # Two words can name one file.
    unique: dict[str, str] = {}
    for file in found:
        unique.setdefault(os.path.abspath(file), file)
    return list(unique.values())


def _files_of(word: str, console: Console) -> list[str]:
    if os.path.isdir(word):
        tree = scan(Path(word))
        files = [os.path.join(word, path) for path in tree.inside("")]
        if not files:
            raise UserError(f"{word!r} holds no images")
        left_out = tree.left_out()
        if tree.twins:
            left_out.append(f"{len(tree.twins):,} files that macOS stores beside images ({tree.twins[0]})")
        if left_out:
            text = f"{word}: left out: {'; '.join(left_out)}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        return files
    if os.path.lexists(word):
        return [word]
    matches = sorted(path for path in glob.glob(word, recursive=True) if not os.path.isdir(path))
    if not matches:
        kind = "nothing matches" if glob.has_magic(word) else "there is no file or folder"
        raise UserError(f"{kind} {word!r}")
    return matches


def predict(
    model: Model,
    files: Sequence[str],
    batch_size: int,
    workers: int,
    add: Callable[[Sequence[str], Any, Any], None],
    console: Console,
) -> int:
    """Run a model on files; `add` gets the names, logits and embeddings of each batch, in order.

    A file that cannot be read is named on stderr. Returns the number of these. At most two batches are in memory.
    Raises UserError for an output that is not finite.
    """
    skipped = 0
    with ProgressReport(console, "predicting", len(files)) as progress:
        for chunk, prepared in _prepared(model, files, batch_size, workers):
            read = []
            for file, result in zip(chunk, prepared, strict=True):
                if isinstance(result, UnreadableError):
                    skipped += 1
                    text = f"crossdistill: {file!r} is skipped: {result}"
                    console.print(text, highlight=False, markup=False, soft_wrap=True)
                else:
                    read.append((file, result))
            if read:
                names = [file for file, _ in read]
                logits, embeddings = model.run([result for _, result in read])
                if not np.isfinite(embeddings if logits is None else logits).all():
                    others = f", or for one of the {len(names) - 1} images after it," if len(names) > 1 else ""
                    raise UserError(f"the model's output for {names[0]!r}{others} is not finite")
                add(names, logits, embeddings)
            progress.advance(len(chunk))
            if progress.due:
                progress.print_state(f"{progress.done}/{progress.total} images")
    return skipped


def _prepared(
    model: Model, files: Sequence[str], batch_size: int, workers: int
) -> Iterator[tuple[Sequence[str], list[Any]]]:
    """Yield batches of files with their inputs, or the reason why one cannot be read; the next one is being read."""

    def prepare(file: str) -> Any:
        try:
            return model.prepare(read_picture(file))
        except UnreadableError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        before: tuple[Sequence[str], Any] | None = None
        for start in range(0, len(files), batch_size):
            chunk = files[start : start + batch_size]
            waiting = [pool.submit(prepare, file) for file in chunk]
            if before is not None:
                yield before[0], [one.result() for one in before[1]]
            before = chunk, waiting
        if before is not None:
            yield before[0], [one.result() for one in before[1]]


class Predictions:
    """Writes predictions as a table (at the end), JSON lines or CSV (at once), and embeddings into a file."""

    def __init__(self, format: str, names: Sequence[str], top_k: int, embedding: Path | None, output: IO[str]) -> None:
        self.format, self.names, self.output = format, names, output
        self.top_k = min(top_k, len(names))
        self._rows: list[list[str]] = []
        self._embeddings = None if embedding is None else EmbeddingFile(embedding)
        # The csv module ends lines by itself.
        self._csv = csv.writer(output, lineterminator="\n")

    def __enter__(self) -> "Predictions":
        if self.format == "csv" and self.names:
            heads = [f"{kind}_{place + 1}" for place in range(self.top_k) for kind in ("class", "probability")]
            self._csv.writerow(["file", *heads])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.format == "table" and self._rows:
            header = ["file", *(f"class {place + 1}" for place in range(self.top_k))]
            columns = tuple(range(len(header)))
            show(TextTable("", header, self._rows, text_columns=columns), Console(file=self.output, emoji=False))
        if self._embeddings is not None:
            self._embeddings.close(whole=kind is None)

    def add(self, files: Sequence[str], logits: Any, embeddings: Any) -> None:
        """Write the predictions of a batch."""
        if self._embeddings is not None:
            self._embeddings.add(files, embeddings)
        if logits is None:
            return
        if logits.shape[1] != len(self.names):
            raise UserError(f"the model names {len(self.names)} classes, but has {logits.shape[1]} logits")
        for file, row in zip(files, probabilities(logits), strict=True):
            best = np.argsort(-row, kind="stable")[: self.top_k]
            self._write(file, [(self.names[place], float(row[place])) for place in best])

    def _write(self, file: str, best: Sequence[tuple[str, float]]) -> None:
        if self.format == "table":
            self._rows.append([_one_line(file), *(f"{_one_line(name)} {100 * value:.1f}%" for name, value in best)])
        elif self.format == "csv":
            self._csv.writerow([file, *(cell for name, value in best for cell in (name, f"{value:.6g}"))])
        else:
            found = [{"class": name, "probability": round(value, 6)} for name, value in best]
            self.output.write(json.dumps({"file": file, "predictions": found}) + "\n")


def probabilities(logits: Any) -> Any:
    """Return the softmax of logits (B, K)."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _one_line(text: str) -> str:
    """Return text with its control characters as codes."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
