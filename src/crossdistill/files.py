"""Files: read only where they are plain files, written completely or not at all; digests, names, and new folders."""

import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossdistill.errors import UserError

_AT_ONCE = getattr(os, "O_NONBLOCK", 0)
"""Opens a pipe without waiting for its other end."""
_MOST_BYTES = 2**28
"""Size above which a file of text or numbers is not one that we wrote."""


def make_folder(folder: Path) -> None:
    """Make a folder for what a command writes. A new folder is ignored by git; one that exists is left as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) so that a reader, also after a crash, finds the old content or the new."""
    # Several processes may write the same file, also of machines that share a disk.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        remove(partial)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename survive a loss of power, where the system can open folders."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove(path: Path) -> None:
    """Remove a file, if there is one and that is possible."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def open_plain(path: str | Path) -> io.BufferedReader:
    """Open a file for reading. Raises OSError, also for pipes and devices, which might never end."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _AT_ONCE))  # noqa: SIM115, the caller's
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is a pipe or a device, not a file")
    return file


def read_plain(path: str | Path) -> bytes:
    """Read a whole file. Raises OSError, also for pipes, devices, and files above 256 MiB."""
    with open_plain(path) as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise OSError(f"it has more than {_MOST_BYTES / 2**20:.0f} MiB")
    return content


def read_text(path: str | Path) -> str:
    """Read a whole file as UTF-8. Raises OSError as `read_plain`, or ValueError."""
    return read_plain(path).decode("utf-8")


def parse_json(text: str | bytes) -> Any:
    """Read JSON. Raises ValueError, also for values within values without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises OSError, also for pipes and devices."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shortest_endings(paths: Sequence[str]) -> list[str]:
    """Return as many last parts of each path as tell all of them apart."""
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(set(paths)):
            return names
    return list(paths)


def missing_of_run(folder: str | Path, name: str) -> UserError:
    """Return the error for a folder without a file of finished runs; one of a comparison is told by its runs."""
    runs = sorted(path.parent for path in Path(folder).glob("*/metrics.json"))
    hint = f"; it holds runs: give one of them, such as {str(runs[0])!r}" if runs else ""
    return UserError(f"{str(folder)!r} is not a finished run: {name} is missing{hint}")
