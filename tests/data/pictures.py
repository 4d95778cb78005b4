"""Pictures for the tests of reading data."""

from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed, height=16, width=16, channels=3):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bar(kind, seed=0, kinds=8, side=32):
    """A bright bar at the angle of a class on dark noise, grey."""
    rows, columns = np.mgrid[:side, :side] - side / 2 + 0.5
    angle = np.pi * kind / kinds
    on = np.abs(columns * np.sin(angle) - rows * np.cos(angle)) < 4
    return np.clip(220 * on + np.random.default_rng(seed).integers(0, 30, on.shape), 0, 255).astype(np.uint8)


def put(picture, path, **save):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, **save)
    return path


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def fill(root, classes=("ant", "bee"), count=10, suffix="png"):
    """Write class folders whose pictures all differ."""
    for place, name in enumerate(classes):
        for i in range(count):
            put(noise(1000 * place + i), Path(root) / name / f"{i}.{suffix}")
    return Path(root)
