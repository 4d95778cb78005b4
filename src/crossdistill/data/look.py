"""A look at all images before they are used: headers, files that cannot be read, copies."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.data.datasets import Arrays, Images, Part, base_of
from crossdistill.data.folder import Files
from crossdistill.data.picture import Header, UnreadableError, read_header, read_picture
from crossdistill.data.remembered import in_threads, read_once
from crossdistill.data.rows import Rows, opened
from crossdistill.errors import UserError
from crossdistill.files import file_digest

MOST_BYTES = 2**30
"""Bytes that are read at the start of a command to compare the contents of files, or the headers in shards."""
_SAMPLED = 20_000
"""Rows of shards whose header is read where all rows are more than MOST_BYTES."""
_DIGESTED = 256
"""Rows that stand for all where a run is continued."""
_FEW = 64
"""Images of a torchvision set that are looked at; such a set is of one kind."""


UNREADABLE = "unreadable"
"""Mark of a file that cannot be read."""


@dataclass(frozen=True)
class Look:
    """What the images of a split are: the header of each that was looked at, and those that cannot be read."""

    headers: tuple[Header, ...]
    unreadable: dict[int, str]
    """The reason, by number of the image."""


def look(images: Images, *, decode: bool) -> Look:
    """Read the header of every image of a split; `decode` reads all of each."""
    base, chosen = base_of(images)
    if isinstance(base, Files):
        paths, tried = [base.paths[i] for i in chosen], partial(_tried, _reader(decode))
        if decode:
            return _collect(range(len(chosen)), in_threads(tried, paths))
        found = read_once(base.root, paths, "header", tried, _header_text, _header_from)
        return _collect(range(len(chosen)), found)
    if isinstance(base, Rows):
        whole = decode or base.nbytes <= MOST_BYTES
        numbers = range(len(chosen)) if whole else _spread(len(chosen), _SAMPLED)
        cells = base.cells([int(chosen[number]) for number in numbers])
        return _collect(numbers, (_tried(_reader(decode), cell) for cell in cells))
    if isinstance(base, Arrays):
        shape = np.shape(base.pixels)
        return Look((Header("L" if len(shape) == 3 else "RGB", shape[2], shape[1]),) * len(chosen), {})
    few = [images.read(index) for index in _spread(len(images), _FEW)]
    return Look(tuple(Header(image.mode, *image.size) for image in few), {})


def sampled_contents(images: Images) -> bytes | None:
    """Return the marks of 256 images spread over a split, and their number; None for data of another kind."""
    marks = content_marks(Part(images, _spread(len(images), _DIGESTED)))
    return None if marks is None else "\n".join([str(len(images)), *marks]).encode()


def content_marks(images: Images) -> list[str] | None:
    """Return size and digest of each file or stored image; None for data of another kind."""
    base, chosen = base_of(images)
    if isinstance(base, Files):
        return marks_of(base.root, [base.paths[index] for index in chosen])
    if not isinstance(base, Rows):
        return None
    cells = (_content(cell) for cell in base.cells([int(index) for index in chosen]))
    return [f"{len(cell)}:{hashlib.sha256(cell).hexdigest()[:16]}" for cell in cells]


def marks_of(root: Path, paths: Sequence[str], *, contents: bool = True) -> list[str]:
    """Return `mark_of` for each of some files below `root`."""
    read = partial(mark_of, contents=contents)
    if not contents:
        return in_threads(read, paths)
    return read_once(root, paths, "mark", read, lambda mark: None if mark == UNREADABLE else mark, str)


def mark_of(path: str, *, contents: bool) -> str:
    """Return the size of a file in bytes and, with `contents`, a digest."""
    try:
        size = os.stat(path).st_size
        return f"{size}:{file_digest(path)[:16]}" if contents else str(size)
    except OSError:
        return UNREADABLE


def place(images: Images, index: int) -> str:
    """Name one image: the path of its file, or its row."""
    base, chosen = base_of(images)
    number = int(chosen[index])
    if isinstance(base, Files):
        return base.paths[number]
    return base.place(number) if isinstance(base, Rows) else f"image {number}"


def unreadable_error(name: str, reason: str, more: int = 0) -> UserError:
    """Build the error for an image that cannot be read, and `more` others."""
    others = f" (and {more} more)" if more else ""
    return UserError(
        f"{name!r}{others} cannot be read as an image: {reason}; remove or replace it, or leave such files out with "
        "--loader.on-bad-image skip"
    )


def bytes_of(images: Images) -> int | None:
    """Return the size of all files or rows of a split in bytes; None for sets that are not read from files."""
    base, chosen = base_of(images)
    if isinstance(base, Files):
        return sum(_size(base.paths[i]) for i in chosen)
    return base.nbytes if isinstance(base, Rows) else None


def copies(parts: Mapping[str, Images], most_bytes: int) -> list[list[tuple[str, int]]] | None:
    """Find images whose files (or rows) are equal byte for byte: groups of (split, number in it).

    Returns None where more than `most_bytes` would have to be read.
    """
    rows = {role: images for role, images in parts.items() if isinstance(base_of(images)[0], Rows)}
    if sum(bytes_of(images) or 0 for images in rows.values()) > most_bytes:
        return None
    # Rows are read once, for size and digest; of files those are read that have the size of another image.
    marks = {role: content_marks(images) or [] for role, images in rows.items()}
    groups: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for role, images in parts.items():
        base, chosen = base_of(images)
        if isinstance(base, Files):
            sizes = [_size(base.paths[index]) for index in chosen]
        else:
            sizes = [int(mark.partition(":")[0]) for mark in marks.get(role, ())]
        for number, size in enumerate(sizes):
            groups[size].append((role, number))
    groups.pop(-1, None)
    todo = {size: members for size, members in groups.items() if len(members) > 1}
    if sum(size * len(members) for size, members in todo.items()) > most_bytes:
        return None
    equal: dict[str, list[tuple[str, int]]] = defaultdict(list)
    alike: dict[str, list[int]] = defaultdict(list)
    for members in todo.values():
        for role, number in members:
            alike[role].append(number)
    for role, images in parts.items():
        numbers, known = sorted(alike[role]), marks.get(role)
        own = content_marks(Part(images, numbers)) if known is None else [known[number] for number in numbers]
        for number, mark in zip(numbers, own or (), strict=True):
            if mark != UNREADABLE:
                equal[mark].append((role, number))
    return [members for members in equal.values() if len(members) > 1]


def _content(cell: Any) -> bytes:
    """Return what tells one stored image from another: its bytes, or its path where the shard holds that alone."""
    stored: bytes = (cell or {}).get("bytes") or str((cell or {}).get("path") or "").encode("utf-8", "surrogateescape")
    return stored


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _reader(decode: bool) -> Callable[[Any], Header]:
    def whole(file: Any) -> Header:
        header = read_header(file)
        read_picture(file)
        return header

    return whole if decode else read_header


def _tried(read: Callable[[Any], Header], file: Any) -> Header | str:
    try:
        return read(opened(file) if isinstance(file, dict | None) else file)
    except UnreadableError as error:
        return str(error)


def _header_text(found: Header | str) -> str | None:
    """Return a header as text; None for an error, which is not remembered."""
    return None if isinstance(found, str) else f"{found.mode} {found.width} {found.height}"


def _header_from(text: str) -> Header | str:
    mode, width, height = text.rsplit(" ", 2)
    return Header(mode, int(width), int(height))


def _collect(numbers: Iterable[int], results: Iterable[Header | str]) -> Look:
    headers, wrong = [], {}
    for number, result in zip(numbers, results, strict=True):
        if isinstance(result, str):
            wrong[number] = result
        else:
            headers.append(result)
    return Look(tuple(headers), wrong)


def _spread(size: int, count: int) -> list[int]:
    chosen: list[int] = np.linspace(0, size - 1, min(count, size)).round().astype(int).tolist()
    return chosen
