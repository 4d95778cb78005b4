"""Images that are stored as bytes inside larger files, by number."""

import io
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

from crossdistill.data.picture import UnreadableError, read_picture
from crossdistill.errors import UserError


class Rows:
    """Images of a split in shards; they are decoded here, so a broken one is named."""

    def __init__(self, labels: Sequence[int], split: str) -> None:
        self.labels = list(labels)
        self.split = split

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Size of all images in bytes, about."""
        raise NotImplementedError

    def cells(self, indices: Sequence[int]) -> Iterable[Any]:
        """Yield the stored images of some rows, not decoded: {"bytes": ..., "path": ...} with one of them, or None."""
        raise NotImplementedError

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one row. Raises UserError, which names it, for one that cannot be read as an image."""
        try:
            (cell,) = self.cells([index])
            return read_picture(opened(cell), at_least)
        except UnreadableError as error:
            raise UserError(f"{self.place(index)} cannot be read as an image: {error}") from error

    def place(self, index: int) -> str:
        """Name one row."""
        return f"row {index} of the {self.split} split"


def opened(cell: Any) -> Any:
    """Return what Pillow can open of a stored image. Raises UnreadableError for a row without one."""
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        raise UnreadableError("there is no image in it")
    return io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"]
