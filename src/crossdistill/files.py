"""Files: written completely or not at all, their digests and names; folders that git ignores."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make a folder for what a command writes. A new folder is ignored by git; one that exists is left as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) so that a reader, also after a crash, finds the old content or the new."""
    # Several processes may write the same file.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shortest_endings(paths: Sequence[str]) -> list[str]:
    """Return as many last parts of each path as tell all of them apart."""
    parts = [Path(path).parts for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(set(paths)):
            return names
    return list(paths)
