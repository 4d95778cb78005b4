"""The input size of a network: one number for a square, else height and width."""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from crossdistill.errors import UserError

ImageSize = int | tuple[int, int]
"""Pixels along a side of a square input, or height and width."""
_TEXT = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")


def image_size(value: int | str | Sequence[int]) -> ImageSize:
    """Read a size: a number, "HEIGHTxWIDTH" or a pair. Equal sides give one number. Raises UserError."""
    sides: list[int]
    if isinstance(value, str):
        match = _TEXT.fullmatch(value.strip())
        sides = [int(value)] * 2 if value.isdecimal() else [int(side) for side in match.groups()] if match else []
    else:
        sides = [value, value] if isinstance(value, int) else list(value)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides):
        raise UserError(
            f"an image size is {value!r}; it must be a number of pixels of at least 1, or height and width as 256x128"
        )
    height, width = sides
    return height if height == width else (height, width)


def sides_of(size: int | str | Sequence[int]) -> tuple[int, int]:
    """Return height and width."""
    size = image_size(size)
    return (size, size) if isinstance(size, int) else size


def written(size: ImageSize) -> int | str:
    """Return a size as settings and messages show it: 96 or "256x128"."""
    return size if isinstance(size, int) else f"{size[0]}x{size[1]}"


def largest(sizes: Sequence[ImageSize]) -> ImageSize:
    """Return the size with the most pixels."""
    return max(sizes, key=lambda size: sides_of(size)[0] * sides_of(size)[1])


def _written(value: int | str | None) -> int | str | None:
    return None if value is None else written(image_size(value))


def _read(value: object) -> object:
    return image_size(value) if isinstance(value, str | list | tuple | int) and not isinstance(value, bool) else value


OptionalSizeText = Annotated[int | str | None, AfterValidator(_written)]
"""A size in a file of settings or on the command line."""
OptionalImageSize = Annotated[ImageSize | None, BeforeValidator(_read)]
"""A size that is an argument of a function."""
