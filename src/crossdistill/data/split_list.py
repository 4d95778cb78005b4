"""The images of each split of a run, as it was started: what is scored later was never trained on."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from crossdistill.config.validation import first_problem
from crossdistill.data.class_names import canonical_name
from crossdistill.data.datasets import Images, Part, Source, base_of
from crossdistill.data.folder import ROLES, Files
from crossdistill.data.look import bytes_of, marks_of
from crossdistill.errors import UserError, first_line
from crossdistill.files import parse_json, read_plain

SPLIT_NAME = "split.json"
UNUSED = "unused"
_MOST_BYTES = 2**28
"""Bytes of all files up to which their contents are compared, not only their sizes."""


@dataclass(frozen=True)
class SplitList:
    """Which files a run uses for what. `images` holds for train, val, test and unused the mark of each file by its key.

    The key is the path below the folder of the data; the mark is the size in bytes and, where `contents` is true, a
    digest. `labels` holds the class numbers of the files, in the same order; it is empty in lists of earlier versions.
    """

    class_names: list[str]
    contents: bool
    images: dict[str, dict[str, str]]
    labels: dict[str, list[int]] = field(default_factory=dict)

    def roles(self) -> dict[str, str]:
        """Return the role of each file by its key."""
        return {key: role for role, marks in self.images.items() for key in marks}


@dataclass(frozen=True)
class Changes:
    """What differs between a data set and the list of an earlier run: keys of files."""

    came: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    """Files that are now in a class that the run does not know."""
    copied: tuple[str, ...] = ()
    """Held-out files that have become copies of training images."""
    relabelled: tuple[str, ...] = ()
    """Files that are now in another class."""

    def phrases(self) -> list[str]:
        """Say in sentences what has changed since the run began."""
        said = (
            (self.came, "came into the data after the run began; they are not used"),
            (self.gone, "of the run are not in the data any more"),
            (self.changed, "of the run have other contents than when it began"),
            (self.moved, "of the run now have a class that it does not know; they are not used"),
            (self.relabelled, "of the run had another class when it began"),
            (self.copied, "held out by the run now have the content of its training images; they are not scored"),
        )
        return [
            f"{len(keys):,} image{'s' * (len(keys) > 1)} ({keys[0]}{', ...' * (len(keys) > 1)}) {text}"
            for keys, text in said
            if keys
        ]


def make_split_list(parts: Mapping[str, Images], source: Source) -> SplitList | None:
    """List the files of each split; None for data that is not read from files."""
    bases = [images for images in source.splits.values() if isinstance(images, Files)]
    if not bases:
        return None
    contents = sum(bytes_of(images) or 0 for images in bases) <= _MOST_BYTES
    listed: dict[str, dict[str, str]] = {}
    for role, images in parts.items():
        base, chosen = base_of(images)
        assert isinstance(base, Files)
        marks = marks_of(base.root, [base.paths[i] for i in chosen], contents=contents)
        listed[role] = dict(zip([base.keys[i] for i in chosen], marks, strict=True))
    labels = {role: [int(label) for label in images.labels] for role, images in parts.items()}
    used = {key for marks in listed.values() for key in marks}
    unused = {key: path for base in bases for key, path in zip(base.keys, base.paths, strict=True) if key not in used}
    marks = marks_of(bases[0].root, list(unused.values()), contents=contents)
    listed[UNUSED] = dict(zip(unused, marks, strict=True))
    return SplitList(list(source.class_names), contents, listed, labels)


def write_split_list(listed: SplitList) -> str:
    """Return the text of a list's file."""
    return json.dumps(
        {
            "class_names": listed.class_names,
            "contents": listed.contents,
            "images": listed.images,
            "labels": listed.labels,
        },
        indent=0,
    )


def read_split_list(folder: str | Path) -> SplitList | None:
    """Read the list in a run's folder; None where there is none. Raises UserError for a damaged one."""
    path = Path(folder) / SPLIT_NAME
    if not path.exists():
        return None
    try:
        stored = parse_json(read_plain(path))
        listed: SplitList = TypeAdapter(SplitList).validate_python(stored)
    except ValidationError as error:
        raise UserError(f"{str(path)!r} is damaged: {first_problem(error)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} is damaged: {first_line(error)}") from error
    return listed


def divided_by(listed: SplitList, source: Source) -> tuple[Source, dict[str, Images], Changes]:
    """Divide a data set as a run has: the same files in the same splits, and the classes in the run's order.

    Returns the source with the run's classes, its parts, and what has changed. Raises UserError for data of another
    kind.
    """
    if not all(isinstance(images, Files) for images in source.splits.values()):
        raise UserError(f"{source.name!r} is not a folder of image files, as the data of the run was")
    # Systems differ in the form of Unicode that they store the names of files in.
    number = {canonical_name(name): place for place, name in enumerate(listed.class_names)}
    roles = listed.roles()
    copied = _became_training_images(listed, source)
    parts: dict[str, Images] = {}
    splits: dict[str, Files] = {}
    for split, images in source.splits.items():
        assert isinstance(images, Files)
        names = [source.class_names[label] for label in images.labels]
        known = Files(images.root, images.keys, [number.get(canonical_name(name), -1) for name in names])
        splits[split] = known
        for role in ROLES:
            chosen = [
                i
                for i, key in enumerate(known.keys)
                if roles.get(key) == role and known.labels[i] >= 0 and key not in copied
            ]
            if chosen:
                parts[role] = Part(known, np.array(chosen))
    changes = _changes(listed, splits, copied)
    divided = Source(source.name, dict(splits), tuple(listed.class_names), source.left_out, source.unreadable)
    return divided, parts, changes


def _changes(listed: SplitList, splits: Mapping[str, Files], copied: Iterable[str]) -> Changes:
    """Return what has changed since the list was written; `copied` are held-out files that are training images now."""
    roles = listed.roles()
    seen = {key: path for files in splits.values() for key, path in zip(files.keys, files.paths, strict=True)}
    marks = {key: mark for role in ROLES for key, mark in listed.images.get(role, {}).items()}
    known_files = {key: seen[key] for key in marks if key in seen}
    now = marks_of(_root(splits), list(known_files.values()), contents=listed.contents)
    return Changes(
        came=tuple(sorted(seen.keys() - roles.keys())),
        gone=tuple(sorted(marks.keys() - seen.keys())),
        changed=tuple(sorted(key for key, mark in zip(known_files, now, strict=True) if marks[key] != mark)),
        moved=tuple(
            sorted(
                key
                for files in splits.values()
                for key, label in zip(files.keys, files.labels, strict=True)
                if label < 0 and roles.get(key) in ROLES
            )
        ),
        copied=tuple(sorted(copied)),
        relabelled=tuple(sorted(_relabelled(listed, splits))),
    )


def _root(splits: Mapping[str, Images]) -> Path:
    """Return the folder that the files of a data set lie below."""
    return next(images.root for images in splits.values() if isinstance(images, Files))


def _relabelled(listed: SplitList, splits: Mapping[str, Files]) -> list[str]:
    """Return the files whose class is another than in the list."""
    before = {
        key: label
        for role, labels in listed.labels.items()
        for key, label in zip(listed.images.get(role, {}), labels, strict=False)
    }
    return [
        key
        for files in splits.values()
        for key, label in zip(files.keys, files.labels, strict=True)
        if 0 <= label != before.get(key, label)
    ]


def _became_training_images(listed: SplitList, source: Source) -> set[str]:
    """Return the held-out files that now have the content of an image that the run has trained on."""
    if not listed.contents:
        return set()
    trained = set(listed.images.get("train", {}).values())
    before = {key: mark for role in ROLES if role != "train" for key, mark in listed.images.get(role, {}).items()}
    files = {
        key: path
        for images in source.splits.values()
        if isinstance(images, Files)
        for key, path in zip(images.keys, images.paths, strict=True)
        if key in before
    }
    marks = marks_of(_root(source.splits), list(files.values()))
    return {key for key, mark in zip(files, marks, strict=True) if mark != before[key] and mark in trained}
