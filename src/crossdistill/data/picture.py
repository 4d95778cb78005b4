"""One image: how a file of any kind becomes 8-bit grey or RGB pixels.

The rules, for every source: the first frame; turned as its EXIF orientation says; transparent parts on white; 16-bit
grey values scaled from [0, 65535] to [0, 255]; values of 32 bits, whole or floating point, are refused, since their
range is not known.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from crossdistill.errors import first_line
from crossdistill.files import open_plain

BACKGROUND = (255, 255, 255, 255)
"""What is seen through transparent parts: white."""
RULES = {
    "orientation": "EXIF applied",
    "transparency": "on white",
    "bit_depth": "16-bit grey scaled from [0, 65535] to [0, 255]",
    "frame": "first",
}
"""The rules of this file, for the record of an exported student."""
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_SIXTEEN_BIT_I = ("PNG", "PPM")
"""Formats of 16-bit images that Pillow opens with 32-bit values."""
_WHITE_16_BIT = 65535
_LONG = 2
_NO_PICTURES = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF")
"""Formats that Pillow lists, but that are documents or films, or that another program would have to read."""


_T = TypeVar("_T")


class UnreadableError(Exception):
    """An image cannot be read; the text says why."""


class Header(NamedTuple):
    """What the first bytes of an image state: Pillow's mode, and the size in pixels as stored."""

    mode: str
    width: int
    height: int

    @property
    def grey(self) -> bool:
        """Whether the image has one channel."""
        return self.mode in _GREY

    @property
    def wide(self) -> bool:
        """Whether the image has values of 16 bits, which are scaled to 8."""
        return self.mode in _WIDE

    @property
    def long(self) -> bool:
        """Whether the image is more than twice as long as it is short."""
        return max(self.width, self.height) > _LONG * min(self.width, self.height)


def mostly_long(headers: Sequence[Header]) -> bool:
    """Return whether at least half of some images are more than twice as long as they are short."""
    return 2 * sum(header.long for header in headers) >= len(headers)


def picture_suffixes() -> frozenset[str]:
    """Return the file suffixes, in lower case, that the installed Pillow and its plugins read."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    known = Image.registered_extensions()
    return frozenset(s for s, kind in known.items() if kind in Image.OPEN and kind not in _NO_PICTURES)


def read_header(file: str | Path | IO[bytes]) -> Header:
    """Read the header of an image. Raises UnreadableError."""

    def read() -> Header:
        with _opened(file) as content, Image.open(content) as image:
            return Header(image.mode, image.width, image.height)

    header = _answered(read)
    if header.mode == "F":
        raise UnreadableError("its values are floating point, whose range is not known: save it with 8 or 16 bits")
    return header


def read_picture(file: str | Path | IO[bytes], at_least: int | None = None) -> Image.Image:
    """Decode an image by the rules above; its mode is L or RGB. Raises UnreadableError.

    With `at_least` a JPEG is decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of its size at which both sides have at
    least so many pixels.
    """

    def read() -> Image.Image:
        with _opened(file) as content:
            image = Image.open(content)
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # None keeps the mode
            image.load()
            # Some formats read their EXIF block only now.
            return standard(image)

    return _answered(read)


def _opened(file: str | Path | IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    return open_plain(file) if isinstance(file, str | Path) else contextlib.nullcontext(file)


def standard(image: Image.Image) -> Image.Image:
    """Return a decoded image as the rules above say; its mode is L or RGB. Raises UnreadableError."""
    # An EXIF block that cannot be read states no orientation.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise UnreadableError("its values are floating point, whose range is not known: save it with 8 or 16 bits")
    if image.mode == "I" and image.format not in _SIXTEEN_BIT_I:
        raise UnreadableError("its values have 32 bits, whose range is not known: save it with 8 or 16 bits")
    if image.mode in _WIDE:
        return _eight_bits(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return _on_background(image)
    if image.mode in _GREY:
        return image if image.mode == "L" else image.convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _WHITE_16_BIT:
        raise UnreadableError(f"its values are whole numbers from {low} to {high}: save it with 8 or 16 bits")
    return Image.fromarray(((values * 255 + _WHITE_16_BIT // 2) // _WHITE_16_BIT).astype(np.uint8))


def _on_background(image: Image.Image) -> Image.Image:
    grey = image.mode in _GREY
    # Premultiplied modes are converted to RGBA in two steps.
    straight = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), straight)
    return opaque.convert("RGB").convert("L") if grey else opaque.convert("RGB")


def _answered(read: Callable[[], _T]) -> _T:
    try:
        return read()
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError("its content is not that of an image") from error
    except Exception as error:  # Pillow's decoders raise many kinds for files that are damaged or too large
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise UnreadableError(reason) from error
