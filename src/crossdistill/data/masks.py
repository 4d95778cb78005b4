"""Images with masks that give each pixel a class, for segmentation."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crossdistill.data.folder import Files
from crossdistill.data.split_names import split_role
from crossdistill.data.tree import join, scan
from crossdistill.errors import UserError, first_line
from crossdistill.files import open_plain

IGNORED = 255
"""Value of a mask's pixels that have no class."""
_LOSSY = (".jpg", ".jpeg", ".webp")
_HELD_OUT = 5
"""Without a test folder, every image whose name has a digest divisible by this is tested on."""


@dataclass(frozen=True)
class MaskedImages:
    """Images of a split, and the file of the mask of each."""

    images: Files
    masks: list[Path]

    def __len__(self) -> int:
        return len(self.masks)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Read a mask (H, W). Raises UserError for one that is no map of class numbers, or of another size."""
        path = self.masks[index]
        try:
            with open_plain(path) as file, Image.open(file) as image:
                mode, mask = image.mode, np.asarray(image)
        except (OSError, ValueError) as error:
            raise UserError(f"the mask {str(path)!r} cannot be read: {first_line(error)}") from error
        if mask.ndim != 2 or mode not in ("1", "L", "P", "I;16", "I"):
            raise UserError(f"the mask {str(path)!r} has colours ({mode}); give each pixel the number of its class")
        if mask.max(initial=0) > IGNORED:
            raise UserError(f"the mask {str(path)!r} has the class {mask.max()}; classes are 0 to 254, 255 is ignored")
        with Image.open(self.images.paths[index]) as image:
            turned = image.getexif().get(0x0112, 1) >= 5
            size = image.size[::-1] if not turned else image.size
        if size != mask.shape:
            raise UserError(f"the mask {str(path)!r} is {mask.shape[1]}x{mask.shape[0]}, its image {size[1]}x{size[0]}")
        return mask.astype(np.uint8)


def load_masked(folder: str) -> tuple[MaskedImages, MaskedImages]:
    """Open the training and the test images of a folder.

    It holds folders `images` and `masks`, or one of these pairs in each of `train` and `test`. A mask has the name of
    its image, with its own suffix. Raises UserError.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"segmentation {folder!r}: no such folder")
    names = [child.name for child in sorted(root.iterdir()) if child.is_dir()]
    children = {role: name for name in names if (role := split_role(name)) is not None}
    if "train" in children:
        tested = children.get("test", children.get("val"))
        if tested is None:
            raise UserError(f"segmentation {folder!r} has a folder for training, and none for the test")
        return _pairs(root, children["train"]), _pairs(root, tested)
    every = _pairs(root, "")
    held = [int(hashlib.sha256(key.encode()).hexdigest(), 16) % _HELD_OUT == 0 for key in every.images.keys]
    parts = [[i for i, out in enumerate(held) if out == wanted] for wanted in (False, True)]
    if not all(parts):
        raise UserError(f"segmentation {folder!r} has {len(every)} images, which are too few to hold some out")
    train, test = (_chosen(every, part) for part in parts)
    return train, test


def _chosen(all_of: MaskedImages, numbers: list[int]) -> MaskedImages:
    keys = [all_of.images.keys[i] for i in numbers]
    return MaskedImages(Files(all_of.images.root, keys, [0] * len(keys)), [all_of.masks[i] for i in numbers])


def _pairs(root: Path, below: str) -> MaskedImages:
    found: dict[str, dict[str, str]] = {}
    for kind in ("images", "masks"):
        place = join(below, kind)
        if not (root / place).is_dir():
            raise UserError(f"{str(root / below)!r} has no folder {kind!r}; it must hold 'images' and 'masks'")
        tree = scan(root / place)
        stems = [key.rpartition(".")[0] for key in tree.inside("")]
        if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
            raise UserError(f"{str(root / place)!r} has two files named {twice!r}")
        found[kind] = dict(zip(stems, [f"{place}/{key}" for key in tree.inside("")], strict=True))
    images, masks = found["images"], found["masks"]
    if not images:
        raise UserError(f"no images in {str(root / below / 'images')!r}")
    if missing := sorted(images.keys() - masks.keys()):
        raise UserError(f"the image {images[missing[0]]!r} has no mask (and {len(missing) - 1} more)")
    if lossy := next((path for path in masks.values() if Path(path).suffix.lower() in _LOSSY), None):
        raise UserError(f"the mask {lossy!r} is stored with loss, which changes classes: store masks as PNG")
    stems = sorted(images)
    files = Files(root, [images[stem] for stem in stems], [0] * len(stems))
    return MaskedImages(files, [root / masks[stem] for stem in stems])
