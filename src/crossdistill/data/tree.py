"""What lies in a folder: images, parquet and tar files, and the rest, counted."""

import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crossdistill.data.picture import picture_suffixes
from crossdistill.errors import UserError

_SYSTEM = ("__MACOSX", "@eaDir", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information")
"""Folders that systems and programs make beside the user's own."""
_TWIN = "._"


@dataclass
class Tree:
    """The content of a folder. Paths are below it, with / between the parts; "" is the folder itself."""

    root: Path
    direct: dict[str, list[str]] = field(default_factory=dict)
    """The images directly in each folder, sorted by code point."""
    children: dict[str, list[str]] = field(default_factory=dict)
    """The names of the folders directly in each folder, sorted by code point."""
    parquet: list[str] = field(default_factory=list)
    tar: list[str] = field(default_factory=list)
    twins: list[str] = field(default_factory=list)
    """Files that macOS puts beside the images it copies to other disks (._1.jpg beside 1.jpg)."""
    others: Counter[str] = field(default_factory=Counter)
    """Number of files of other types, by suffix in lower case."""
    hidden: int = 0
    """Number of files and folders whose name begins with a dot, or that a system has made."""
    special: int = 0
    """Number of pipes, sockets and devices, and of links that lead back to a folder above."""

    def inside(self, folder: str, without: Collection[str] = ()) -> Iterator[str]:
        """Yield the images in a folder and in all folders below it, except those below the folders `without`."""
        yield from self.direct[folder]
        for name in self.children[folder]:
            if (inner := join(folder, name)) not in without:
                yield from self.inside(inner, without)

    def filled(self, folder: str) -> bool:
        """Return whether there is an image in a folder or below it."""
        return any(True for _ in self.inside(folder))

    def left_out(self) -> list[str]:
        """Say in phrases which files are not images."""
        phrases = []
        if self.others:
            kinds = ", ".join(f"{kind or 'no suffix'} {count}" for kind, count in self.others.most_common(6))
            phrases.append(f"{_count(self.others.total(), 'file')} of other types ({kinds})")
        if self.hidden:
            phrases.append(f"{_count(self.hidden, 'hidden file or folder', 'hidden files and folders')}")
        if self.special:
            phrases.append(f"{_count(self.special, 'special file')}")
        return phrases


def join(folder: str, name: str) -> str:
    """Return the path of what has this name in a folder of a tree."""
    return f"{folder}/{name}" if folder else name


def scan(root: Path) -> Tree:
    """List a folder and all folders in it, following links. Nothing is opened.

    Raises UserError for a name that this Python process would read wrongly.
    """
    tree = Tree(root)
    _scan(tree, str(root), "", (os.path.realpath(root),), picture_suffixes())
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        named = [*tree.direct, *tree.inside(""), *tree.parquet, *tree.tar]
        wrong = next((name for name in named if not name.isascii()), None)
        if wrong is not None:
            raise UserError(
                f"{os.fsencode(wrong)!r} in {str(root)!r}: this Python reads the names of files as {encoding}; start "
                "it with the environment variable PYTHONUTF8=1"
            )
    return tree


def _scan(tree: Tree, folder: str, below: str, above: tuple[str, ...], suffixes: frozenset[str]) -> None:
    pictures, children = tree.direct.setdefault(below, []), tree.children.setdefault(below, [])
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = join(below, entry.name)
        suffix = os.path.splitext(entry.name)[1].lower().rstrip(".")
        if entry.name.startswith(_TWIN) and suffix in suffixes:
            tree.twins.append(path)
        elif entry.name.startswith(".") or entry.name in _SYSTEM:
            tree.hidden += 1
        elif _is_loop(entry):
            tree.special += 1
        elif entry.is_dir():
            real = os.path.realpath(entry.path)
            if real in above:
                tree.special += 1
            else:
                children.append(entry.name)
                _scan(tree, entry.path, path, (*above, real), suffixes)
        elif not entry.is_file() and not _is_broken_link(entry):
            tree.special += 1
        elif suffix in suffixes:
            pictures.append(path)
        elif suffix == ".parquet":
            tree.parquet.append(path)
        elif suffix == ".tar":
            tree.tar.append(path)
        else:
            tree.others[suffix] += 1


def _is_loop(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a link that leads to itself."""
    try:
        entry.is_dir()
    except OSError:
        return True
    return False


def _is_broken_link(entry: "os.DirEntry[str]") -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
