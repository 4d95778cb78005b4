"""What was read of the image files of a large folder: remembered between commands, while a file is unchanged."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Literal, TypeVar

_THREADS = 8
"""Files that are opened at the same time."""
_AT_ONCE = 64
"""Files that a thread reads in one task."""
_FEWEST = 5_000
"""Files from which on they are remembered; fewer are read again in a moment."""
_TOGETHER = 4_096
"""Files that are looked up and stored together."""
_SETTLED_NS = 2 * 10**9
"""Age from which a change of a file would be seen in its times, which have the precision of the file system."""
_TABLE = (
    "CREATE TABLE IF NOT EXISTS facts (path BLOB, kind TEXT, state TEXT, value TEXT, PRIMARY KEY (kind, path)) "
    "WITHOUT ROWID"
)

_T = TypeVar("_T")


def read_once(
    root: Path,
    paths: Sequence[str],
    kind: Literal["header", "mark"],
    read: Callable[[str], _T],
    to_text: Callable[[_T], str | None],
    from_text: Callable[[str], _T],
) -> list[_T]:
    """Call a function that reads a file for many files below `root`, in order, or return what it returned before.

    What is stored is `to_text(result)`, unless that is None. It holds while device, inode, size, time of modification
    and time of change of the file are the same: a file that is replaced, also by `cp -p` or rsync, has another time of
    change. The store is a file below the user's cache folder, and can be deleted; where it cannot be used, all files
    are read.
    """
    if len(paths) < _FEWEST:
        return in_threads(read, paths)
    results: list[_T] = []
    try:
        place = _store(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(place)) as table:
            table.execute(_TABLE)
            for start in range(0, len(paths), _TOGETHER):
                results += _some(table, paths[start : start + _TOGETHER], kind, read, to_text, from_text)
    except (OSError, sqlite3.Error, ValueError, TypeError, AttributeError):  # the last three for a damaged value
        results += in_threads(read, paths[len(results) :])
    return results


def in_threads(read: Callable[[str], _T], paths: Sequence[str]) -> list[_T]:
    """Call a function that reads a file for many files, in order."""
    parts = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    # A task for each file would cost more than small files take to read.
    with ThreadPoolExecutor(_THREADS) as pool:
        return [result for part in pool.map(lambda part: [read(path) for path in part], parts) for result in part]


def _some(
    table: sqlite3.Connection,
    paths: Sequence[str],
    kind: str,
    read: Callable[[str], _T],
    to_text: Callable[[_T], str | None],
    from_text: Callable[[str], _T],
) -> list[_T]:
    keys = [os.fsencode(path) for path in paths]
    # The state is taken before the file is read: a change in between is seen the next time. Threads would wait for each
    # other longer than for the files.
    states = [_state(path) for path in paths]
    marks = ",".join("?" * len(keys))
    rows = table.execute(f"SELECT path, state, value FROM facts WHERE kind = ? AND path IN ({marks})", (kind, *keys))
    stored = {path: (state, value) for path, state, value in rows}
    known = [stored.get(key, ("", ""))[0] == state != "" for key, state in zip(keys, states, strict=True)]
    todo = [number for number, one in enumerate(known) if not one]
    read_now = dict(zip(todo, in_threads(read, [paths[number] for number in todo]), strict=True))
    texts = {number: to_text(result) for number, result in read_now.items()}
    new = [(keys[n], kind, states[n], text) for n, text in texts.items() if text is not None and states[n]]
    with table:
        table.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)", new)
    return [read_now[n] if n in read_now else from_text(stored[key][1]) for n, key in enumerate(keys)]


def _state(path: str) -> str:
    """Return what changes with a file; empty where the file is too new, or cannot be read."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    if time.time_ns() - max(found.st_ctime_ns, found.st_mtime_ns) < _SETTLED_NS:
        return ""
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def _store(root: Path) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return folder / "crossdistill" / "files" / f"{name}.sqlite"
