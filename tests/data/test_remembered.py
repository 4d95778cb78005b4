"""What is read of many files is read once, and again where a file has changed."""

import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from crossdistill import UserError
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data, look, remembered
from tests.data.pictures import put

CONFIG = LoaderConfig(workers=0)


def colour(value):
    return np.full((6, 6, 3), value, np.uint8)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder that counts as large, whose files count as settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remembered, "_FEWEST", 1)
    monkeypatch.setattr(remembered, "_SETTLED_NS", 0)
    for name in "ab":
        for number in range(12):
            put(colour(10 * number + ord(name)), tmp_path / "photos" / name / f"{number:02d}.bmp")
    return tmp_path / "photos"


@pytest.fixture
def opened(monkeypatch):
    """The files whose header or content is read."""
    found = []
    header, digest = look.read_header, look.file_digest
    monkeypatch.setattr(look, "read_header", lambda path: (found.append(path), header(path))[1])
    monkeypatch.setattr(look, "file_digest", lambda path: (found.append(path), digest(path))[1])
    return found


def test_a_second_command_reads_no_file(photos, opened):
    first = load_data(str(photos), CONFIG)
    assert len(opened) == 2 * 24  # each header, and each content: all files have the same size
    opened.clear()
    again = load_data(str(photos), CONFIG)
    assert not opened
    assert (again.about, again.size, again.files) == (first.about, first.size, first.files)


def test_a_file_that_is_replaced_is_read_again_whatever_its_times(photos, opened, tmp_path):
    first = load_data(str(photos), CONFIG)
    path = photos / "a" / "03.bmp"
    before = path.stat()
    put(colour(200), tmp_path / "other.bmp")
    os.utime(tmp_path / "other.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.clear()
    shutil.copy2(
        tmp_path / "other.bmp", path
    )  # as `cp -p` and rsync: the size and the time of modification are the same
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    again = load_data(str(photos), CONFIG)
    assert {os.path.basename(one) for one in opened} == {"03.bmp"}
    assert again.files != first.files
    changed = load_data(str(photos), CONFIG, first.files).changes
    assert changed.changed == ("a/03.bmp",)


def test_a_file_that_has_just_been_written_is_not_remembered(photos, opened, monkeypatch):
    monkeypatch.setattr(remembered, "_SETTLED_NS", 3600 * 10**9)
    load_data(str(photos), CONFIG)
    first = sorted(opened)
    opened.clear()
    load_data(str(photos), CONFIG)
    assert sorted(opened) == first


def test_an_error_is_not_remembered(photos):
    path = photos / "b" / "05.bmp"
    whole = path.read_bytes()
    path.write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(UserError, match=r"05\.bmp"):
            load_data(str(photos), CONFIG)
    path.write_bytes(whole)
    assert len(load_data(str(photos), CONFIG).train)


@pytest.mark.parametrize("damage", ["garbage", "folder", "foreign"])
def test_a_store_that_cannot_be_used_does_not_matter(photos, tmp_path, damage):
    first = load_data(str(photos), CONFIG)
    (store,) = (tmp_path / "home" / "crossdistill" / "files").iterdir()
    if damage == "garbage":
        store.write_bytes(b"no table" * 1000)
    elif damage == "folder":
        store.unlink()
        store.mkdir()
    else:
        import sqlite3

        store.unlink()
        with sqlite3.connect(store) as table:
            table.execute("CREATE TABLE facts (other TEXT)")
    again = load_data(str(photos), CONFIG)
    assert (again.about, again.files) == (first.about, first.files)


@pytest.mark.slow
def test_two_hundred_thousand_files_are_read_once(tmp_path, monkeypatch):
    """Prints the seconds of CPU time of the first and of the second command on the same folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    put(np.zeros((8, 8, 3), np.uint8), tmp_path / "one.png")
    image = Image.open(tmp_path / "one.png")
    assert image.size == (8, 8)
    content = (tmp_path / "one.png").read_bytes()
    for number in range(200_000):
        folder = tmp_path / "photos" / f"class{number % 100:02d}"
        if number < 100:
            folder.mkdir(parents=True)
        (folder / f"{number}.png").write_bytes(content + number.to_bytes(4, "big"))
    time.sleep(3)
    seconds = []
    for _ in range(2):
        start = time.process_time()
        assert len(load_data(str(tmp_path / "photos"), CONFIG).train) == 162_000
        seconds.append(time.process_time() - start)
    print(f"200,000 files: {seconds[0]:.0f} s, then {seconds[1]:.0f} s of CPU time")
    assert seconds[1] < seconds[0] / 3
