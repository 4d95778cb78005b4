import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from crossdistill.data.picture import UnreadableError, picture_suffixes, read_header, read_picture
from tests.data.pictures import noise, orientation, put

TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg"])
@pytest.mark.parametrize("value", TURNS)
def test_pictures_are_turned_as_exif_says(tmp_path, value, suffix):
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:4, :8], pixels[4:, 8:] = 255, (200, 0, 0)
    lossless = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    path = put(pixels, tmp_path / f"a.{suffix}", exif=orientation(value), **lossless)
    read = np.asarray(read_picture(path)).astype(int)
    assert np.abs(read - TURNS[value](pixels)).max() <= (0 if suffix != "jpg" else 12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("block", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
def test_a_damaged_exif_block_turns_nothing(tmp_path, block):
    pixels = np.zeros((8, 16), dtype=np.uint8)
    pixels[:4] = 255
    path = put(pixels, tmp_path / "a.jpg", exif=b"Exif\0\0" + block, quality=100)
    assert np.abs(np.asarray(read_picture(path)).astype(int) - pixels).max() <= 4


def test_transparent_parts_are_white():
    rgba = np.dstack([noise(0), np.full((16, 16), 255, np.uint8)])
    rgba[:8, :, 3] = 0
    grey = np.ascontiguousarray(rgba[:, :, 0])
    pictures = {
        "RGBA": Image.fromarray(rgba),
        "LA": Image.merge("LA", [Image.fromarray(grey), Image.fromarray(rgba[:, :, 3])]),
        # PNG has no PA; a palette with the transparency of each entry stands for it.
        "P": Image.fromarray(rgba).quantize(16),
    }
    for mode, picture in pictures.items():
        read = read_picture(png(picture))
        assert read.mode == ("L" if mode == "LA" else "RGB")
        assert (np.asarray(read)[:8] == 255).all()
        kept = grey if mode == "LA" else rgba[:, :, :3]
        if mode != "P":
            assert (np.asarray(read)[8:] == kept[8:]).all()


def png(picture, **save):
    stream = io.BytesIO()
    picture.save(stream, "PNG", **save)
    stream.seek(0)
    return stream


def test_a_transparent_colour_is_white():
    cases = {
        "L": (Image.fromarray(np.array([[0, 90]], np.uint8)), 90, [[0, 255]]),
        "RGB": (Image.fromarray(np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8)), (1, 2, 3), [[[0] * 3, [255] * 3]]),
        "P": (Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P"), 1, [[[0] * 3, [255] * 3]]),
        "1": (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), 0, [[255, 255]]),
    }
    for mode, (picture, key, expected) in cases.items():
        read = read_picture(png(picture, transparency=key))
        assert np.asarray(read).tolist() == expected, mode


def test_sixteen_bits_become_eight():
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    expected = np.round(values / 257).astype(int).tolist()
    assert np.asarray(read_picture(png(Image.fromarray(values)))).tolist() == expected
    for byte_order in ("<u2", ">u2"):
        stream = io.BytesIO()
        Image.fromarray(values.astype(byte_order)).save(stream, "TIFF")
        stream.seek(0)
        assert np.asarray(read_picture(stream)).tolist() == expected


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.array([[0.0, 0.5]], np.float32), "floating point"),
        (np.array([[0, 70000]], np.int32), "its values have 32 bits"),
        # As many programs write values up to 255 or 4095: scaled as 16 bits the image would be black.
        (np.array([[0, 255]], np.int32), "its values have 32 bits"),
    ],
)
def test_values_of_unknown_range_are_refused(values, match):
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "TIFF")
    with pytest.raises(UnreadableError, match=match):
        read_picture(stream)
    if values.dtype == np.float32:
        with pytest.raises(UnreadableError, match=match):
            read_header(stream)


def test_other_modes_become_grey_or_colour(tmp_path):
    colour = Image.fromarray(noise(1))
    for mode, suffix, expected in (
        ("1", "png", "L"),
        ("L", "bmp", "L"),
        ("P", "gif", "RGB"),
        ("CMYK", "jpg", "RGB"),
        ("YCbCr", "jpg", "RGB"),
        ("LAB", "tif", "RGB"),
    ):
        assert read_picture(put(colour.convert(mode), tmp_path / f"{mode}.{suffix}")).mode == expected


def test_the_first_frame_is_read(tmp_path):
    frames = [Image.fromarray(noise(k)) for k in range(3)]
    for suffix in ("gif", "webp", "tif", "apng"):
        path = tmp_path / f"a.{suffix}"
        kind = {"apng": "PNG"}.get(suffix)
        extra = {"lossless": True} if suffix == "webp" else {}
        frames[0].save(path, format=kind, save_all=True, append_images=frames[1:], **extra)
        if suffix != "gif":
            assert (np.asarray(read_picture(path)) == noise(0)).all()
        assert read_picture(path).size == (16, 16)


def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def test_what_pillow_refuses_has_one_plain_reason(tmp_path):
    text = PngInfo()
    text.add_text("prompt", "x" * 2_000_000, zip=True)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    files = {
        "text.png": png(Image.fromarray(noise(0)), pnginfo=text).read(),
        "bomb.png": bomb + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
        "zero.jpg": b"",
        "page.jpg": b"<!DOCTYPE html><html></html>",
        "cut.png": png(Image.fromarray(noise(0))).read()[:200],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableError) as refused:
            read_picture(tmp_path / name)
        assert str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(UnreadableError, match="No such file"):
        read_picture(tmp_path / "none.png")


def test_the_types_that_are_read():
    known = picture_suffixes()
    assert {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".jp2"} <= known
    assert not {".pdf", ".eps", ".h5", ".mpg", ".txt", ".parquet", ""} & known


@pytest.mark.parametrize("value", [1, 6])
def test_a_large_jpeg_is_decoded_at_the_size_that_is_needed(tmp_path, value):
    rows, columns = np.mgrid[:600, :800]
    pixels = np.dstack([rows * 0.4, columns * 0.3, 128 + 100 * np.sin(rows / 20)]).astype(np.uint8)
    path = put(pixels, tmp_path / "a.jpg", exif=orientation(value), quality=95)
    whole = read_picture(path)
    sizes = {None: (800, 600), 150: (200, 150), 151: (400, 300), 300: (400, 300), 301: (800, 600), 5000: (800, 600)}
    for at_least, size in sizes.items():
        read = read_picture(path, at_least)
        assert read.size == (size if value == 1 else size[::-1])
        expected = np.asarray(whole.resize(read.size, Image.Resampling.BOX)).astype(int)
        assert np.abs(np.asarray(read) - expected).max() <= 12
    assert read_picture(put(pixels, tmp_path / "b.png"), 8).size == (800, 600)
