"""The format of stored outputs: one row for each view of each image, with all fields side by side."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from crossdistill.backbones.pooling import pooled
from crossdistill.errors import UserError
from crossdistill.types import BackboneOutput

_MOST = 2**31
_Size = Annotated[int, Field(ge=1, le=_MOST)]
_DTYPES = {"float16": np.float16, "float32": np.float32}


@dataclass(frozen=True)
class CacheFormat:
    """What is stored of each view, and in which shards."""

    images: _Size
    """N, training images."""
    embedding: _Size
    """D, width of the teacher's embedding."""
    classes: Annotated[int, Field(ge=0, le=_MOST)]
    """K; 0 stores no logits."""
    top_k: int | None = None
    """Logits kept for each view, with the mass of the others; None keeps all."""
    stages: tuple[tuple[Annotated[int, Field(ge=1, le=4)], tuple[_Size, _Size, _Size]], ...] = ()
    """Stage maps kept: number 1 to 4 and shape (C, H, W), which may be that of a pooled map."""
    dtype: Literal["float16", "float32"] = "float16"
    shard_images: _Size = 8192
    """Images in a shard."""

    def __post_init__(self) -> None:
        if self.top_k is not None and not 1 <= self.top_k < self.classes:
            raise UserError(f"cache_top_k is {self.top_k}; of {self.classes} classes keep 1 to {self.classes - 1}")
        numbers = self.embedding + self.classes + sum(math.prod(shape) for _, shape in self.stages)
        if numbers >= _MOST // 8:
            raise UserError(f"a row of the cache has {numbers:,} numbers; it must have less than {_MOST // 8:,}")

    @property
    def row(self) -> np.dtype[Any]:
        """The fields of one view of one image."""
        number: Any = _DTYPES[self.dtype]
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
        """Return the size in bytes of a cache with `views` views."""
        return int(self.row.itemsize * self.images * views)

    def bounds(self, shard: int) -> tuple[int, int]:
        """Return the first image of a shard, and the one after its last."""
        return shard * self.shard_images, min((shard + 1) * self.shard_images, self.images)

    def images_in(self, shards: Iterable[tuple[int, int]]) -> int:
        """Count the images in shards, given as (view, shard)."""
        return sum(end - first for first, end in (self.bounds(shard) for _, shard in shards))

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
        for number, shape in self.stages:
            stage = pooled(output.require_stages()[number - 1], max(shape[1:]))
            rows[f"stage{number}"] = self._stored(f"stage {number}", stage)

    def _stored(self, name: str, values: Tensor) -> Any:
        numbers = values.float().cpu().numpy()
        with np.errstate(over="ignore"):
            kept = numbers.astype(_DTYPES[self.dtype])
        if not np.isfinite(kept).all():
            largest = float(values.float().abs().max())
            raise UserError(
                f"the teacher's {name} reaches {largest:.3g}, which {self.dtype} cannot hold"
                + ("; use --cache-dtype float32" if math.isfinite(largest) else ": the teacher returns inf or nan")
            )
        return kept

    def unpack(self, rows: Any) -> BackboneOutput:
        """Convert rows to the teacher's output, in the stored dtype; stage maps that are not stored are empty.

        With top-k, the mass of the classes that were left out is divided evenly among them (in float32).
        """
        stored = {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in rows.dtype.names or ()}
        embedding, logits = stored["embedding"], stored.get("logits")
        if self.top_k is not None:
            left_out = stored["rest"] - math.log(self.classes - self.top_k)
            logits = left_out[:, None].repeat(1, self.classes).scatter(1, stored["place"].long(), stored["top"].float())
        if not self.stages:
            return BackboneOutput(logits, embedding)
        stages = tuple(stored.get(f"stage{number}", embedding.new_empty(0)) for number in (1, 2, 3, 4))
        return BackboneOutput(logits, embedding, stages)
