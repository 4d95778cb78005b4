"""Stored outputs on disk: shards of rows, memory-mapped, each with its checksum.

A shard holds one view of consecutive images, as rows of all fields side by side, so that reading a sample touches one
place. `view-003-00012.bin` is complete as soon as `view-003-00012.json` exists beside it.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.files import write_whole
from crossdistill.types import BackboneOutput

MANIFEST = "cache.json"
LOCKS = ".locks"
DTYPES = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class CacheFormat:
    """What is stored of each view, and in which shards."""

    images: int
    """N, training images."""
    embedding: int
    """D, width of the teacher's embedding."""
    classes: int
    """K; 0 stores no logits."""
    top_k: int | None = None
    """Logits kept for each view, with the mass of the others; None keeps all."""
    stages: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Stage maps kept: number 1 to 4 and shape (C, H, W)."""
    dtype: str = "float16"
    shard_images: int = 8192
    """Images in a shard."""

    def __post_init__(self) -> None:
        if self.top_k is not None and not 1 <= self.top_k < self.classes:
            raise UserError(f"cache_top_k is {self.top_k}; of {self.classes} classes keep 1 to {self.classes - 1}")

    @property
    def row(self) -> np.dtype[Any]:
        """The fields of one view of one image."""
        number: Any = DTYPES[self.dtype]
        fields: list[Any] = [("embedding", number, (self.embedding,))]
        if self.top_k is not None:
            place = np.int16 if self.classes <= 2**15 else np.int32
            fields += [("top", number, (self.top_k,)), ("place", place, (self.top_k,)), ("rest", np.float32, ())]
        elif self.classes:
            fields.append(("logits", number, (self.classes,)))
        fields += [(f"stage{stage}", number, shape) for stage, shape in self.stages]
        return np.dtype(fields)

    @property
    def shards(self) -> int:
        """Number of shards of a view."""
        return math.ceil(self.images / self.shard_images)

    def bytes(self, views: int) -> int:
        """Return the size of a cache of so many views."""
        return int(self.row.itemsize * self.images * views)

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first image of a shard, and the first after it."""
        return shard * self.shard_images, min((shard + 1) * self.shard_images, self.images)

    def pack(self, output: BackboneOutput, rows: Any) -> None:
        """Write outputs (B, ...) into rows of this format. Raises UserError for numbers that the dtype cannot hold."""
        rows["embedding"] = self._stored("embedding", output.embedding)
        if self.top_k is not None:
            logits = output.require_logits().float()
            top, place = logits.topk(self.top_k, dim=1)
            rows["top"], rows["place"] = self._stored("logits", top), place.cpu().numpy()
            others = logits.scatter(1, place, float("-inf"))
            rows["rest"] = others.logsumexp(dim=1).cpu().numpy()
        elif self.classes:
            rows["logits"] = self._stored("logits", output.require_logits())
        for number, _ in self.stages:
            rows[f"stage{number}"] = self._stored(f"stage {number}", output.require_stages()[number - 1])

    def _stored(self, name: str, values: Tensor) -> Any:
        numbers = values.float().cpu().numpy()
        with np.errstate(over="ignore"):
            kept = numbers.astype(DTYPES[self.dtype])
        if not np.isfinite(kept).all():
            largest = float(values.float().abs().max())
            raise UserError(
                f"the teacher's {name} reaches {largest:.3g}, which {self.dtype} cannot hold"
                + ("; use --cache-dtype float32" if math.isfinite(largest) else ": the teacher returns inf or nan")
            )
        return kept

    def unpack(self, rows: Any) -> BackboneOutput:
        """Make the teacher's output of rows, in the stored dtype; stage maps that are not stored are empty.

        With top-k, the classes that were left out share the mass they had together evenly (in float32).
        """
        stored = {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in rows.dtype.names or ()}
        embedding, logits = stored["embedding"], stored.get("logits")
        if self.top_k is not None:
            share = stored["rest"] - math.log(self.classes - self.top_k)
            logits = share[:, None].repeat(1, self.classes).scatter(1, stored["place"].long(), stored["top"].float())
        if not self.stages:
            return BackboneOutput(logits, embedding)
        stages = tuple(stored.get(f"stage{number}", embedding.new_empty(0)) for number in (1, 2, 3, 4))
        return BackboneOutput(logits, embedding, stages)


def shard_name(view: int, shard: int) -> str:
    """Name a shard, without its ending."""
    return f"view-{view:03d}-{shard:05d}"


def write_manifest(folder: Path, fmt: CacheFormat, record: dict[str, Any]) -> None:
    """Write format and fingerprint of a cache, before its first shard."""
    write_whole(folder / MANIFEST, json.dumps({"format": asdict(fmt), "fingerprint": record}, indent=1))


def read_manifest(folder: Path) -> tuple[CacheFormat, dict[str, Any]]:
    """Read format and fingerprint of a cache. Raises UserError for a folder that is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        fmt = dict(manifest["format"])
        fmt["stages"] = tuple((number, tuple(shape)) for number, shape in fmt["stages"])
        return CacheFormat(**fmt), manifest["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(folder)!r} holds no readable teacher cache ({error})") from error


def missing_shards(folder: Path, fmt: CacheFormat, views: int) -> list[tuple[int, int]]:
    """List (view, shard) of what is not written yet."""
    every = [(view, shard) for view in range(views) for shard in range(fmt.shards)]
    return [key for key in every if not (folder / f"{shard_name(*key)}.json").exists()]


def checksum(path: Path) -> str:
    """Hash a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            stated = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except ValueError:
            stated = {}
        size = path.stat().st_size if path.exists() else -1
        if size != (end - first) * self.format.row.itemsize or (verify and checksum(path) != stated.get("sha256")):
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
