"""The images that a run has trained on, so that it is not scored on them later, whatever data they come in."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from crossdistill.data.datasets import Images, base_of
from crossdistill.data.folder import Files
from crossdistill.data.look import MOST_BYTES, bytes_of, content_marks, mark_of
from crossdistill.data.mixed import Joined
from crossdistill.data.split_list import SplitList, read_split_list
from crossdistill.errors import UserError, first_line
from crossdistill.files import read_plain

TRAINED_NAME = "trained.json"


@dataclass(frozen=True)
class TrainedOn:
    """What the folder of a run states: its list of files, and the marks of training images that are in no list.

    A mark is the size in bytes and a digest of the content. `marks` is None where a part of the images is not known.
    """

    listed: SplitList | None
    marks: frozenset[str] | None

    @property
    def by_content(self) -> bool:
        """Whether all images are known by their content, so that copies of them are found."""
        return self.marks is not None and (self.listed is None or self.listed.contents)

    def find(self, images: Images) -> list[int]:
        """Return the numbers of the images that the run has trained on: the same content, or the same path and size."""
        base, chosen = base_of(images)
        trained = {} if self.listed is None else self.listed.images.get("train", {})
        by_content = self.listed is not None and self.listed.contents
        known = {*(self.marks or ()), *(trained.values() if by_content else ())}
        marks = (content_marks(images) if known else None) or ()
        found = {number for number, mark in enumerate(marks) if mark in known}
        if not by_content and isinstance(base, Files):
            keys = [(base.keys[index], base.paths[index]) for index in chosen]
            same = [trained.get(key) == mark_of(path, contents=False) for key, path in keys]
            found |= {number for number, one in enumerate(same) if one}
        return sorted(found)


def unlisted_marks(train: Images, files: SplitList | None) -> list[str] | None:
    """Return the marks of the training images that are in no list of files: rows of shards, images without labels.

    None where they cannot be told: other kinds of data, or more than 1 GiB.
    """
    parts = train.parts if isinstance(train, Joined) else (train,)
    todo = parts if files is None else parts[1:]
    if sum(bytes_of(part) or 0 for part in todo) > MOST_BYTES:
        return None
    found = [content_marks(part) for part in todo if len(part)]
    if any(marks is None for marks in found):
        return None
    return sorted({mark for marks in found if marks is not None for mark in marks})


def write_trained(marks: Iterable[str] | None) -> str:
    """Return the text of the file with the marks."""
    return json.dumps({"marks": None if marks is None else list(marks)}, indent=0)


def read_trained(folder: str | Path) -> TrainedOn:
    """Read what a run has trained on. Raises UserError for a damaged file."""
    listed, path = read_split_list(folder), Path(folder) / TRAINED_NAME
    if not path.exists():
        # Folders of earlier versions have it not; their runs on files are known by the list.
        return TrainedOn(listed, None if listed is None else frozenset())
    try:
        stored = TypeAdapter(dict[str, list[str] | None]).validate_json(read_plain(path))["marks"]
    except (OSError, KeyError, ValidationError) as error:
        raise UserError(f"{str(path)!r} is damaged: {first_line(error)}") from error
    return TrainedOn(listed, None if stored is None else frozenset(stored))
