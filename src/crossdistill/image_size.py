"""The input size of a network: one number for a square, else height and width."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from crossdistill.errors import UserError

ImageSize = int | tuple[int, int]
"""Pixels along a side of a square input, or height and width."""
_LARGEST = 8192
"""Side in pixels above which a size is taken for a mistake: the smallest batch of such images takes gigabytes."""
_TEXT = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")


def image_size(value: int | str | Sequence[int]) -> ImageSize:
    """Read a size: a number, "HEIGHTxWIDTH" or a pair. Equal sides give one number. Raises UserError."""
    sides: list[Any]
    if isinstance(value, str):
        match = _TEXT.fullmatch(value.strip())
        sides = [int(value)] * 2 if value.isdecimal() else [int(side) for side in match.groups()] if match else []
    else:
        sides = [value, value] if not isinstance(value, Sequence) else list(value)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not 1 <= min(sides) <= max(sides) <= _LARGEST:
        raise UserError(
            f"an image size is {value!r}; it must be a number of pixels from 1 to {_LARGEST}, or height and width as "
            "256x128"
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
    """Return the largest height and the largest width of several sizes."""
    heights, widths = zip(*map(sides_of, sizes), strict=True)
    return image_size((max(heights), max(widths)))


def _written(value: int | str | None) -> int | str | None:
    return None if value is None else written(image_size(value))


def _read(value: object) -> object:
    return image_size(value) if isinstance(value, str | list | tuple | int) and not isinstance(value, bool) else value


OptionalSizeText = Annotated[int | str | None, AfterValidator(_written)]
"""A size in a file of settings or on the command line."""
OptionalImageSize = Annotated[ImageSize | None, BeforeValidator(_read)]
"""A size that is an argument of a function."""
