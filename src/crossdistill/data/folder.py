"""Folders of images: which folder is a split, which is a class, and the images of each.

A class is the folder directly in the split (or in the data, where there are no splits), as for torchvision; images
in folders below it belong to it. Classes are numbered by their sorted names (by code point: `A` before `a`, `class10`
before `class2`).
"""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from crossdistill.config.data import LoaderConfig
from crossdistill.data.datasets import Images, Source
from crossdistill.data.picture import UnreadableError, read_picture
from crossdistill.data.split_names import roles_in, split_role
from crossdistill.data.tree import Tree, join
from crossdistill.errors import UserError

ROLES = ("train", "val", "test")
_AS_CLASSES = "if they are classes, give --loader.train-dir ."


class Files:
    """Image files. `keys` are their paths below the folder of the data, with / between the parts."""

    def __init__(self, root: Path, keys: Sequence[str], labels: Sequence[int]) -> None:
        self.root = root
        self.keys = list(keys)
        self.labels = list(labels)
        self.paths = [os.path.join(root, key) for key in keys]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one file. Raises UserError, with its name, for a file that cannot be read as an image."""
        try:
            return read_picture(self.paths[index], at_least)
        except UnreadableError as error:
            raise UserError(f"{self.paths[index]!r} cannot be read as an image: {error}") from error


def folder_source(tree: Tree, config: LoaderConfig) -> Source:
    """Find the splits and classes of a folder. Raises UserError where they are not clear."""
    splits = _given_splits(tree, config) or _found_splits(tree)
    classes = {role: _classes(tree, folder, splits) for role, folder in splits.items()}
    names = sorted(classes["train"])
    _check_names(names)
    where = str(tree.root / splits["train"])
    if not names:
        raise UserError(_no_images(tree, where))
    if len(names) < 2:
        raise UserError(
            f"{where!r} has 1 class folder; a classifier needs at least 2"
            + _hint_deeper(tree, join(splits["train"], names[0]))
        )
    number = {name: place for place, name in enumerate(names)}
    read: dict[str, Images] = {}
    for role, members in classes.items():
        _check_classes(tree, splits[role], members, number)
        pairs = [(key, number[name]) for name in sorted(members) for key in members[name]]
        read[role] = Files(tree.root, [key for key, _ in pairs], [label for _, label in pairs])
    left_out = [*tree.left_out(), *_outside(tree, splits), *_empty_splits(tree, splits)]
    for kind, shards in (("parquet", tree.parquet), ("tar", tree.tar)):
        if shards:
            left_out.append(f"{kind} files ({shards[0]}, ...), since there are class folders with images")
    return Source(tree.root.resolve().name, read, tuple(names), tuple(left_out), _twins(tree))


def _twins(tree: Tree) -> tuple[tuple[str, str], ...]:
    reason = "it is what macOS stores beside an image, and not an image itself"
    return tuple((str(tree.root / path), reason) for path in tree.twins)


def unlabelled_source(tree: Tree, config: LoaderConfig) -> Source:
    """Return all images of a folder, at any depth, without classes; in splits where there are folders of such names.

    Raises UserError for a folder without images.
    """
    splits = _given_splits(tree, config) or _named_splits(tree)
    taken = {role: {other for other in splits.values() if other and other != splits[role]} for role in splits}
    keys = {role: sorted(tree.inside(folder, taken[role])) for role, folder in splits.items()}
    for role, found in keys.items():
        if not found:
            raise UserError(f"no images in {str(tree.root / splits[role])!r}{_left_out_hint(tree)}")
    read: dict[str, Images] = {role: Files(tree.root, found, [0] * len(found)) for role, found in keys.items()}
    left_out = [*tree.left_out(), *_outside(tree, splits)]
    return Source(tree.root.resolve().name, read, ("image",), tuple(left_out), _twins(tree))


def _named_splits(tree: Tree) -> dict[str, str]:
    """Return the folders in the root that are named as splits, if one of them is for training; else the root."""
    named = {role: name for name in reversed(_filled(tree, "")) if (role := split_role(name)) is not None}
    return {role: named[role] for role in ROLES if role in named} if "train" in named else {"train": ""}


def has_class_folders(tree: Tree) -> bool:
    """Return whether at least two folders hold images."""
    return sum(bool(pictures) for folder, pictures in tree.direct.items() if folder) >= 2


def _given_splits(tree: Tree, config: LoaderConfig) -> dict[str, str]:
    """Return the folders of the splits that the settings name, below the root. Raises UserError."""
    given = {role: getattr(config, f"{role}_dir") for role in ROLES}
    found = {}
    for role, folder in given.items():
        if folder is None:
            continue
        path = os.path.normpath(os.path.join(tree.root, folder))
        below = os.path.relpath(path, tree.root).replace(os.sep, "/")
        if below.startswith("..") or not os.path.isdir(path):
            raise UserError(f"loader.{role}_dir is {folder!r}; it must be a folder in {str(tree.root)!r}")
        found[role] = "" if below == "." else below
        if found[role] not in tree.direct:
            raise UserError(f"loader.{role}_dir is {folder!r}; hidden folders, and those of a system, are not read")
    if found and "train" not in found:
        raise UserError("loader.val_dir and loader.test_dir need loader.train_dir as well")
    if len(set(found.values())) < len(found):
        raise UserError("two of loader.train_dir, val_dir and test_dir are the same folder")
    return found


def _found_splits(tree: Tree) -> dict[str, str]:
    """Find the folders of the splits by their names; the root is the only one where there are none.

    A folder with the name of a split is one where it holds folders with images; one that holds the images itself
    is a class that is called so. Raises UserError where both are possible.
    """
    filled = _filled(tree, "")
    direct = {name for name in filled if tree.direct[name]}
    nested = {name for name in filled if _filled(tree, name)}
    named = {name: role for name in filled if (role := split_role(name)) is not None}
    others = [name for name in filled if name not in named]
    splits = {name: role for name, role in named.items() if name in nested and (name not in direct or not others)}
    if not splits:
        if named and not others:
            raise UserError(
                f"{sorted(named)} in {str(tree.root)!r} are named as splits, but hold no class folders; {_AS_CLASSES}"
            )
        _check_first_level(tree, "")
        return {"train": ""}
    for role in ROLES:
        if len(same := sorted(name for name, one in splits.items() if one == role)) > 1:
            raise UserError(
                f"{str(tree.root)!r} has {same[0]!r} and {same[1]!r}, which both name the {role} split; "
                f"choose with --loader.train-dir, --loader.val-dir and --loader.test-dir"
            )
    found = {role: name for name, role in splits.items()}
    if "train" not in found:
        raise UserError(
            f"{str(tree.root)!r} has {next(iter(splits))!r} but no 'train'; without any split, give class folders"
        )
    if others and len(found) == 1:
        raise UserError(
            f"{str(tree.root)!r} has {found['train']!r}, the name of a split, beside {others[0]!r}: give "
            f"--loader.train-dir {found['train']} if it is the training split, or --loader.train-dir . if it is a class"
        )
    _check_first_level(tree, found["train"])
    return {role: found[role] for role in ROLES if role in found}


def _check_first_level(tree: Tree, folder: str) -> None:
    """Raise UserError where the folders in a folder look like splits of other names, or those in them like splits."""
    filled = [name for name in _filled(tree, folder) if not tree.direct[join(folder, name)]]
    inner = {name: _filled(tree, join(folder, name)) for name in filled}
    where = str(tree.root / folder)
    for name, names in inner.items():
        if names and all(split_role(one) for one in names):
            raise UserError(
                f"in {where!r} the splits {names} are inside the class folders ({name!r}); a folder for each split, "
                f"with class folders in it, is needed ({_AS_CLASSES})"
            )
    roles = {role: name for name in reversed(filled) for role in roles_in(name) if len(roles_in(name)) == 1}
    if not folder and "train" in roles and len(roles) > 1:
        # Archives often hold a folder of the same name again.
        given = [
            f"--loader.{role}-dir {name}{f'/{name}' if inner[name] == [name] else ''}" for role, name in roles.items()
        ]
        raise UserError(
            f"{sorted(roles.values())} in {where!r} are named as splits: give {' '.join(given)}; {_AS_CLASSES}"
        )
    for name in filled:
        for other in filled[: filled.index(name)]:
            if len(shared := [one for one in inner[name] if one in inner[other]]) > 1:
                raise UserError(
                    f"{other!r} and {name!r} in {where!r} have the same folders ({shared[0]!r}, {shared[1]!r}, ...) in "
                    f"them: if they are splits, name them with --loader.train-dir {join(folder, other)} and "
                    f"--loader.test-dir; {_AS_CLASSES}"
                )


def _filled(tree: Tree, folder: str) -> list[str]:
    """Return the names of the folders directly in a folder that hold images, at any depth."""
    return [name for name in tree.children[folder] if tree.filled(join(folder, name))]


def _classes(tree: Tree, folder: str, splits: dict[str, str]) -> dict[str, list[str]]:
    """Return the images of each class folder of a split, also of those that hold none. Raises UserError."""
    taken = {other for other in splits.values() if other and other != folder}
    if direct := tree.direct[folder]:
        raise UserError(f"{str(tree.root / direct[0])!r} is in no class folder")
    folders = {name: join(folder, name) for name in tree.children[folder]}
    return {name: list(tree.inside(whole, taken)) for name, whole in folders.items() if whole not in taken}


def _check_classes(tree: Tree, folder: str, members: dict[str, list[str]], number: dict[str, int]) -> None:
    """Raise UserError for class folders without images, and for those that the training split does not have."""
    where = str(tree.root / folder)
    for name, keys in members.items():
        if not keys:
            hint = "" if name in number else ", or is a class that the training split does not have"
            raise UserError(f"class folder {name!r} of {where!r} holds no images{hint}{_left_out_hint(tree)}")
        if name not in number:
            raise UserError(f"class folder {name!r} of {where!r} is a class that the training split does not have")


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"the name of class folder {os.fsencode(name)!r} is not UTF-8: rename it") from None


def _empty_splits(tree: Tree, splits: dict[str, str]) -> list[str]:
    """Say in phrases which folders are named as splits, but hold no images."""
    named = [name for name in tree.children[""] if split_role(name) and name not in splits.values()]
    return [f"the folder {name!r}, which holds no images" for name in named if not tree.filled(name)]


def _outside(tree: Tree, splits: dict[str, str]) -> list[str]:
    """Say in phrases which images belong to no split."""
    if "" in splits.values():
        return []
    read = tuple(f"{folder}/" for folder in splits.values())
    outside = [path for path in tree.inside("") if not path.startswith(read)]
    tops = sorted({path.split("/")[0] if "/" in path else "the top folder" for path in outside})
    return [f"{len(outside):,} images outside of the splits (in {', '.join(tops[:4])})"] if outside else []


def _no_images(tree: Tree, where: str) -> str:
    return f"no images in {where!r}; expected one folder per class with image files in it{_left_out_hint(tree)}"


def _left_out_hint(tree: Tree) -> str:
    phrases = tree.left_out()
    return f" (left out: {'; '.join(phrases)})" if phrases else ""


def _hint_deeper(tree: Tree, folder: str) -> str:
    deeper = len(_filled(tree, folder)) > 1
    return f"; are the classes one level deeper? Then give --data {tree.root / folder}" if deeper else ""
