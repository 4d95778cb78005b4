"""`python -m benchmarks.mosaic --data FOLDER --out FOLDER` makes a data set for `crossdistill eval --segmentation`.

Each image shows four photos of other classes, two by two; its mask gives each pixel the class of its photo. So a
classifier of cells has to tell what is where, which a pooled embedding need not keep. The photos are those of an image
folder with `train` and `test`, and stay in their split. The same command makes the same files.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import CenterCrop, Compose, Resize

COUNTS = {"train": 600, "test": 200}
"""Mosaics of each split."""
SIDE = 96
"""Pixels along a side of each of the four photos."""


def make(data: Path, out: Path, counts: dict[str, int] = COUNTS) -> None:
    """Write images and masks (PNG) into `out`."""
    crop = Compose([Resize(SIDE), CenterCrop(SIDE)])
    for split, count in counts.items():
        photos = ImageFolder(str(data / split), transform=crop)
        classes = np.asarray(photos.targets)
        random = np.random.default_rng(0)
        for kind in ("images", "masks"):
            (out / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            chosen = random.choice(len(photos.classes), size=4, replace=False)
            image = Image.new("RGB", (2 * SIDE, 2 * SIDE))
            mask = np.empty((2 * SIDE, 2 * SIDE), np.uint8)
            for place, label in enumerate(chosen):
                row, column = divmod(place, 2)
                photo, _ = photos[random.choice(np.flatnonzero(classes == label))]
                image.paste(photo, (column * SIDE, row * SIDE))
                mask[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE] = label
            image.save(out / split / "images" / f"{number:04}.png")
            Image.fromarray(mask).save(out / split / "masks" / f"{number:04}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mosaic", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Image folder with train and test.")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    make(given.data, given.out)
