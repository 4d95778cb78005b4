"""A text or CSV file that lists images: their paths, and for a CSV file their labels and splits as well.

Paths are relative to the folder of the file. In a text file every line is a path. A CSV or TSV file begins with the
names of its columns; those of the path, the label and the split are found by their usual names.
"""

import csv
import io
import os
import re
from pathlib import Path

from crossdistill.config.data import LoaderConfig
from crossdistill.data.class_names import largest_number, sorted_classes
from crossdistill.data.datasets import Images, Source
from crossdistill.data.folder import ROLES, Files
from crossdistill.data.split_names import split_role
from crossdistill.errors import UserError, first_line

LISTS = (".txt", ".csv", ".tsv")
_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABELS = ("label", "class", "class_name", "category", "target")
"""Usual names of what holds an image's class, in lower case."""
_SPLITS = ("split", "set", "subset", "partition")

_POINTED = re.compile(r"[0-9]+(\.0*)?")
"""A whole number, maybe written with a decimal point."""

_BEHIND = re.compile(r"(.+?\.\w+)[\s,;|]+(\S.*)")
"""A path, and what stands behind it."""

_Row = tuple[int, str, str | None, str]
"""Number of the line, path, label, role."""


def listed_source(file: Path, config: LoaderConfig) -> Source:
    """Open a list of images. Raises UserError for one that cannot be read, or that states no labels to learn."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data {str(file)!r} cannot be read as text in UTF-8: {first_line(error)}") from error
    rows, others = (_lines(text), []) if file.suffix.lower() == ".txt" else _table(file, text, config)
    if not rows:
        raise UserError(f"data {str(file)!r} lists no images")
    if all(role != "train" for *_, role in rows):
        raise UserError(f"data {str(file)!r} lists no images of the training split")
    if file.suffix.lower() == ".txt":
        _check_paths(file, rows)
    _check_once(file, rows)
    names: tuple[str, ...] = ("image",)
    if config.labels == "classes":
        rows = _without_points(file, rows)
        names = _class_names(file, rows)
    number = {name: place for place, name in enumerate(names)}
    labels = config.labels == "classes"
    splits: dict[str, Images] = {}
    for role in ROLES:
        chosen = [row for row in rows if row[3] == role]
        if chosen:
            numbers = [number[str(label)] if labels else 0 for _, _, label, _ in chosen]
            splits[role] = Files(file.resolve().parent, [path for _, path, _, _ in chosen], numbers)
    return Source(file.stem, splits, names, tuple(others))


def _lines(text: str) -> list[_Row]:
    lines = ((number, line.strip()) for number, line in enumerate(io.StringIO(text), 1))
    return [(number, _key(line), None, "train") for number, line in lines if line]


def _table(file: Path, text: str, config: LoaderConfig) -> tuple[list[_Row], list[str]]:
    """Read a CSV or TSV file, and say which further columns could state labels or splits. Raises UserError."""
    # Not splitlines: it also splits at other characters than line feeds, and inside quoted values.
    separator = "\t" if file.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        return _rows(file, reader, columns, config)
    except csv.Error as error:
        raise UserError(f"line {reader.reader.line_num} of {str(file)!r} cannot be read: {error}") from error


def _rows(
    file: Path, reader: "csv.DictReader[str]", columns: list[str], config: LoaderConfig
) -> tuple[list[_Row], list[str]]:
    others = []
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise UserError(f"the first line of {str(file)!r} names the column {twice!r} twice")
    path = _column(file, columns, config.image_column, _PATHS, "image")
    label = None
    if config.labels == "classes":
        label = _column(file, columns, config.label_column, LABELS, "label")
        further = [repr(name) for name in columns if name.lower() in LABELS and name != label]
        if further:
            others.append(f"the column {', '.join(further)}; labels are those in {label!r} (--loader.label-column)")
    splits = [name for one in _SPLITS for name in columns if name.lower() == one]
    split = splits[0] if splits else None
    if splits[1:]:
        others.append(f"the column {', '.join(map(repr, splits[1:]))}; splits are those in {split!r}")
    rows = []
    for row in reader:
        line = reader.line_num
        values = {name: (value or "").strip() for name, value in row.items() if isinstance(value, str | None)}
        if any("\n" in value for value in values.values()):
            raise UserError(f"a value in line {line} of {str(file)!r} spans several lines: is a quote missing?")
        if None in row:
            raise UserError(f"line {line} of {str(file)!r} has more values than the first line has columns")
        if not values[path] or (label is not None and not values[label]):
            missing = path if not values[path] else label
            raise UserError(f"line {line} of {str(file)!r} has no value in the column {missing!r}")
        role = "train" if split is None else split_role(values[split])
        if role is None:
            raise UserError(
                f"line {line} of {str(file)!r} has the split {values[split or '']!r}; it must be train, val or test"
            )
        rows.append((line, _key(values[path]), None if label is None else values[label], role))
    return rows, others


def _key(path: str) -> str:
    return os.path.normpath(path).replace(os.sep, "/")


def _column(file: Path, columns: list[str], named: str | None, known: tuple[str, ...], kind: str) -> str:
    found = named if named in columns else None
    if named is None:
        found = next((name for one in known for name in columns if name.lower() == one), None)
    if found is None:
        raise UserError(
            f"{str(file)!r} has no column {named or ' or '.join(known[:3])!r} in its first line "
            f"({', '.join(columns[:6])}); name it with --loader.{kind}-column"
            + (", and separate columns by commas" if len(columns) == 1 and ";" in columns[0] else "")
            + (", and end the name of a file with tabs in .tsv" if len(columns) == 1 and "\t" in columns[0] else "")
            + ("" if kind == "image" else ", or train without labels (--loader.labels none)")
        )
    return found


def _check_paths(file: Path, rows: list[_Row]) -> None:
    """Raise UserError where a line is the path of an image with something behind it."""
    folder = file.resolve().parent
    for line, path, _, _ in rows:
        found = _BEHIND.fullmatch(path)
        if found and not (folder / path).exists() and (folder / found[1]).exists():
            raise UserError(
                f"line {line} of {str(file)!r} has {found[2]!r} behind the path of an image, and a text file lists "
                "paths alone; write labels into a CSV or TSV file whose first line is path,label"
            )


def _check_once(file: Path, rows: list[_Row]) -> None:
    lines: dict[str, int] = {}
    folder = file.resolve().parent
    for line, path, _, _ in rows:
        whole = os.path.join(folder, path)
        if whole in lines:
            raise UserError(f"{str(file)!r} lists {path!r} twice, in lines {lines[whole]} and {line}")
        lines[whole] = line


def _without_points(file: Path, rows: list[_Row]) -> list[_Row]:
    """Return rows whose labels are whole numbers where the list has them as 0.0, 1.0, ...

    pandas writes a column of whole numbers so where a value is missing, and `nan` for that value. Raises UserError for
    a row without a label.
    """
    labels = {label for *_, label, _ in rows if label is not None}
    numbers = {label for label in labels if _POINTED.fullmatch(label)}
    if not any("." in label for label in numbers) or labels - numbers - {"nan", "NaN"}:
        return rows
    without = next((line for line, _, label, _ in rows if label not in numbers), None)
    if without is not None:
        raise UserError(f"line {without} of {str(file)!r} has no label (nan): leave its image out")
    return [(line, path, str(label).partition(".")[0], role) for line, path, label, role in rows]


def _class_names(file: Path, rows: list[_Row]) -> tuple[str, ...]:
    """Return the classes of the training images: whole numbers by value, text by code point. Raises UserError."""
    if any(label is None for _, _, label, _ in rows):
        raise UserError(
            f"{str(file)!r} states no labels; list them in a CSV file with the columns path and label, or train "
            "without labels (--loader.labels none)"
        )
    found = {str(label) for _, _, label, role in rows if role == "train"}
    for line, _, label, role in rows:
        if label not in found:
            raise UserError(
                f"line {line} of {str(file)!r} ({role}) has the label {label!r}, which no training image has"
            )
    if len(found) < 2:
        raise UserError(f"{str(file)!r} lists images of {len(found)} class; a classifier needs at least 2")
    largest_number(found, f"lines of {str(file)!r}")
    return sorted_classes(found)
