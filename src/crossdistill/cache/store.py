"""Stored outputs on disk: shards of rows, memory-mapped, each with its checksum.

A shard holds one view of consecutive images, so that reading a sample touches one place. `view-003-00012.bin` is
complete as soon as `view-003-00012.json` exists beside it.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from crossdistill.cache.format import CacheFormat
from crossdistill.config.validation import first_problem
from crossdistill.errors import UserError
from crossdistill.files import file_digest, read_plain, write_whole
from crossdistill.types import BackboneOutput

MANIFEST = "cache.json"
LOCKS = ".locks"


class _Manifest(TypedDict):
    format: CacheFormat
    fingerprint: dict[str, int | dict[str, Any]]


class _Checksum(TypedDict):
    sha256: str


def shard_name(view: int, shard: int) -> str:
    """Return the name of a shard's files, without the extension."""
    return f"view-{view:03d}-{shard:05d}"


def write_manifest(folder: Path, fmt: CacheFormat, record: dict[str, Any]) -> None:
    """Write format and fingerprint of a cache, before its first shard."""
    write_whole(folder / MANIFEST, json.dumps({"format": asdict(fmt), "fingerprint": record}, indent=1))


def read_manifest(folder: Path) -> tuple[CacheFormat, dict[str, Any]]:
    """Read format and fingerprint of a cache. Raises UserError for a folder that does not hold a readable one."""
    path = folder / MANIFEST
    try:
        manifest = TypeAdapter(_Manifest).validate_json(read_plain(path))
    except OSError as error:
        raise UserError(f"{str(folder)!r} is not a teacher cache: {MANIFEST}: {error.strerror or error}") from error
    except ValidationError as error:
        raise UserError(f"{str(path)!r} is damaged: {first_problem(error)}") from error
    return manifest["format"], manifest["fingerprint"]


def missing_shards(folder: Path, fmt: CacheFormat, views: int) -> list[tuple[int, int]]:
    """List (view, shard) of what is not written yet."""
    every = [(view, shard) for view in range(views) for shard in range(fmt.shards)]
    return [key for key in every if not (folder / f"{shard_name(*key)}.json").exists()]


class TeacherCache:
    """A finished cache, for reading; cheap to send to worker processes.

    Opening it reads every shard of the `views` once and compares checksums (unless `verify` is False, for the processes
    of one machine beside the first). Raises UserError for a missing or changed shard.
    """

    def __init__(self, folder: Path, views: int, *, verify: bool = True) -> None:
        self.folder = folder
        self.views = views
        self.format, self.fingerprint = read_manifest(folder)
        self._maps: dict[tuple[int, int], Any] = {}
        absent = missing_shards(folder, self.format, views)
        if absent:
            raise UserError(
                f"the teacher cache {str(folder)!r} lacks {len(absent)} of {views * self.format.shards} shards of "
                f"{views} views; `crossdistill cache` with the same settings completes it"
            )
        for view, shard in self._keys():
            self._check(view, shard, verify)

    def _keys(self) -> Iterator[tuple[int, int]]:
        return ((view, shard) for view in range(self.views) for shard in range(self.format.shards))

    def _check(self, view: int, shard: int, verify: bool) -> None:
        path = self.folder / f"{shard_name(view, shard)}.bin"
        first, end = self.format.bounds(shard)
        try:
            stated = TypeAdapter(_Checksum).validate_json(read_plain(path.with_suffix(".json")))["sha256"]
        except (OSError, ValidationError):
            stated = ""
        size = path.stat().st_size if path.is_file() else -1
        if size != (end - first) * self.format.row.itemsize or (verify and file_digest(path) != stated):
            raise UserError(
                f"{str(path)!r} was changed after it was written (its checksum or size differs): delete it and its "
                ".json, and `crossdistill cache` with the same settings writes it again"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def _shard(self, view: int, shard: int) -> Any:
        if (view, shard) not in self._maps:
            path = self.folder / f"{shard_name(view, shard)}.bin"
            self._maps[view, shard] = np.memmap(path, dtype=self.format.row, mode="r")
        return self._maps[view, shard]

    def read(self, keys: list[tuple[int, int]]) -> BackboneOutput:
        """Read the teacher's output for (index, view) pairs, in the stored dtype."""
        table = np.asarray(keys)
        indices, views = table[:, 0], table[:, 1]
        places = views * self.format.shards + indices // self.format.shard_images
        rows = np.empty(len(table), dtype=self.format.row)
        for place in np.unique(places):
            here = places == place
            view, shard = divmod(int(place), self.format.shards)
            rows[here] = self._shard(view, shard)[indices[here] - self.format.bounds(shard)[0]]
        return self.format.unpack(rows)
