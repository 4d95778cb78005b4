"""Which file of a sharded data set belongs to which split: parquet and tar shards are named alike."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from crossdistill.data.split_names import roles_in, split_role
from crossdistill.errors import UserError


def shard_files(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the shards of each split, by its name: what the file's name begins with, or the folder it is in.

    Where no name is that of a split, all shards are training data. Raises UserError for several sets in one folder.
    """
    found: dict[str, list[str]] = {}
    for path in paths:
        parts = PurePosixPath(path).parts
        named = [_first_word(parts[-1]), *reversed(parts[:-1])]
        split = next((name for name in named if split_role(name)), None) or _stated(path, parts[-1]) or named[0]
        same = [other for other in found.get(split, []) if PurePosixPath(other).name == parts[-1]]
        if same:
            raise UserError(
                f"{same[0]!r} and {path!r} have the same name: they may be shards of two sets; give the folder of one, "
                "or other names"
            )
        found.setdefault(split, []).append(path)
    if not any(map(split_role, found)):
        return {"train": list(paths)}
    return found


def is_named_as_split(path: str) -> bool:
    """Return whether the name of a shard begins with that of a split."""
    return split_role(_first_word(PurePosixPath(path).name)) is not None


def roles_of(found: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return the name of the split of each role. Raises UserError for two of one role, and without train."""
    roles: dict[str, str] = {}
    for split in found:
        role = split_role(split)
        if role in roles:
            raise UserError(f"{str(folder)!r} has {roles[role]!r} and {split!r}, which both name the {role} split")
        if role is not None:
            roles[role] = split
    if "train" not in roles:
        raise UserError(f"{str(folder)!r} has the splits {', '.join(found)}; one must be train")
    return roles


def _first_word(name: str) -> str:
    return re.split(r"[-.]", name)[0]


def _stated(path: str, name: str) -> str | None:
    """Return the split that the words of a file's name state. Raises UserError for several."""
    roles = sorted(roles_in(name.rpartition(".")[0]))
    if len(roles) > 1:
        raise UserError(f"{path!r} names several splits ({', '.join(roles)}); rename it, or put it into a folder")
    return roles[0] if roles else None
