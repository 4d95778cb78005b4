"""Any folder of pictures against a slow, plain reader: the same classes, the same pixels, the same division."""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.datasets import base_of
from tests.data.pictures import noise, orientation, put

NAMES = st.sampled_from(
    ["a", "A", "b", "01", "1", "class10", "class2", "train", "Äpfel", "two words", "[red]", "x.y", "-", "日", "val"]
)
CLASSES = st.lists(NAMES, min_size=2, max_size=4, unique=True)
PICTURE = st.tuples(
    st.sampled_from(["", "inner/", "inner/deeper/"]),
    st.sampled_from(["L", "RGB", "RGBA", "LA", "1", "I;16"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 8),
)
SPLITS = {
    "train": ["train", "Training", "train_set"],
    "val": ["val", "valid", "dev", "Validation"],
    "test": ["test", "Testing", "eval"],
}
LAYOUTS = st.sampled_from([("train",), ("train", "test"), ("train", "val"), ("train", "val", "test")])
STRAYS = st.lists(st.sampled_from([".hidden.png", "notes.txt", ".git/x.png", "Thumbs.db"]), unique=True)


def stored(mode, height, width, seed):
    """Random pixels of a mode: as an array of the stored values, and as a picture."""
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        values = rng.integers(0, 65536, (height, width), dtype=np.uint16)
        return values, Image.fromarray(values)
    if mode == "1":
        values = rng.random((height, width)) < 0.5
        return values, Image.fromarray(values)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    values = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values, Image.fromarray(values[:, :, 0] if mode == "L" else values, mode=None if channels != 2 else "LA")


def plain_pixels(mode, values, turn):
    """What is to be read, (H, W, 1 or 3) floats: value by value, then turned."""
    values = values.astype(float)
    if mode == "I;16":
        values = np.round(values / 257)
    if mode == "1":
        values = values * 255
    if values.ndim == 2:
        values = values[:, :, None]
    if mode in ("LA", "RGBA"):
        alpha = values[:, :, -1:] / 255
        values = values[:, :, :-1] * alpha + 255 * (1 - alpha)
    out = {}
    height, width = values.shape[:2]
    for y in range(height):
        for x in range(width):
            place = {
                1: (y, x),
                2: (y, width - 1 - x),
                3: (height - 1 - y, width - 1 - x),
                4: (height - 1 - y, x),
                5: (x, y),
                6: (x, height - 1 - y),
                7: (width - 1 - x, height - 1 - y),
                8: (width - 1 - x, y),
            }[turn]
            out[place] = values[y, x]
    shape = (height, width) if turn < 5 else (width, height)
    return np.array([[out[y, x] for x in range(shape[1])] for y in range(shape[0])])


def plain_division(keys, classes):
    """Hold out, class by class: first the test images, then the validation images of what is left."""
    roles = {}
    for name in classes:
        left = [key for key in keys if key.split("/")[0] == name]
        for role, seed in (("test", 1), ("val", 0)):
            count = min(max(int(len(left) * 0.3 + 0.5), 1), len(left) - 1)
            ranked = sorted(left, key=lambda key, seed=seed: hashlib.sha256(f"{seed}/{key}".encode()).digest())
            roles |= dict.fromkeys(ranked[:count], role)
            left = [key for key in left if key not in roles]
        roles |= dict.fromkeys(left, "train")
    return roles


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CLASSES, st.lists(PICTURE, min_size=3, max_size=7), STRAYS, st.integers(0, 1000))
def test_folders_are_read_as_a_plain_reader_reads_them(classes, pictures, strays, seed):
    if set(classes) <= {"train", "val"}:
        return  # the names of splits alone: refused, see test_folder
    with tempfile.TemporaryDirectory() as home:
        root, expected = Path(home) / "set", {}
        for place, name in enumerate(classes):
            put(noise(0), root / name / "first.png")
            expected[f"{name}/first.png"] = noise(0).astype(float)
            for number, (inner, mode, height, width, turn) in enumerate(pictures):
                key = f"{name}/{inner}{number}.png"
                values, picture = stored(mode, height, width, seed + 100 * place + number)
                put(picture, root / key, exif=orientation(turn))
                expected[key] = plain_pixels(mode, values, turn)
        for stray in strays:
            path = root / classes[0] / stray
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no picture")
        data = load_data(str(root), LoaderConfig(val_fraction=0.3))
        assert data.class_names == tuple(sorted(name for name in os.listdir(root)))
        roles = plain_division(expected, classes)
        seen = set()
        for role in ("train", "val", "test"):
            images = getattr(data, role)
            base, chosen = base_of(images)
            for number, index in enumerate(chosen):
                key = base.keys[index]
                seen.add(key)
                assert roles[key] == role
                assert data.class_names[images.labels[number]] == key.split("/")[0]
                read = np.asarray(images.read(number)).astype(float)
                read = read[:, :, None] if read.ndim == 2 else read
                assert read.shape == expected[key].shape
                assert np.abs(read - expected[key]).max() <= 1
        assert seen == set(expected)


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CLASSES, LAYOUTS, st.randoms(use_true_random=False), st.sampled_from(["png", "jpg", "gif", "palette.png"]))
def test_folders_of_splits_are_read_as_a_plain_reader_reads_them(classes, layout, random, kind):
    """Splits under any usual names, with or without a folder above; classes that are named as splits among them."""
    with tempfile.TemporaryDirectory() as home:
        root, expected, seed = Path(home) / "set", {}, 0
        for role in layout:
            folder = random.choice(SPLITS[role])
            for name in classes:
                for number in range(random.randint(4, 6)):
                    seed += 1
                    inner = random.choice(["", "inner/"])
                    key = f"{folder}/{name}/{inner}{number}.{kind}"
                    picture = Image.fromarray(noise(seed, 8, 8))
                    if kind in ("gif", "palette.png"):
                        picture = picture.quantize(200)
                    put(picture, root / key)
                    with Image.open(root / key) as stored:
                        expected[key] = role, name, np.asarray(stored.convert("RGB"))
        data = load_data(str(root), LoaderConfig(val_fraction=0.3))
        assert data.class_names == tuple(sorted(classes))
        # A single evaluation split is the test split, whatever its name.
        given_test = "test" in layout or "val" in layout
        found = {"train": set(), "val": set(), "test": set()}
        for role, keys in found.items():
            images = getattr(data, role)
            base, chosen = base_of(images)
            for number, index in enumerate(chosen):
                key = base.keys[index]
                keys.add(key)
                _, name, pixels = expected[key]
                assert data.class_names[images.labels[number]] == name
                assert np.array_equal(np.asarray(images.read(number).convert("RGB")), pixels)
        of = {role: {key for key in expected if expected[key][0] == role} for role in ("train", "val", "test")}
        assert set().union(*found.values()) == set(expected)
        assert found["train"] <= of["train"]
        if given_test:
            assert found["test"] == (of["test"] or of["val"])
        if len(layout) == 3:
            assert found["val"] == of["val"]
        else:
            assert found["val"] <= of["train"]
            assert found["val"]
