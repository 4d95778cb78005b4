import json

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from crossdistill import BackboneOutput, UserError
from crossdistill.data.masks import IGNORED, load_masked
from crossdistill.evaluation.segmentation import segment
from tests.commands.running import TINY, run
from tests.data.pictures import noise, put

QUIET = Console(quiet=True)


def scene(seed, side=32, kinds=3):
    """Rectangles of a few grey levels on dark noise, and the class of each pixel."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((side, side + 8), np.uint8)
    for kind in range(1, kinds):
        top, left = rng.integers(0, side // 2, 2)
        mask[top : top + side // 2, left : left + side // 2] = kind
    return np.clip(mask * 80 + rng.integers(0, 30, mask.shape), 0, 255).astype(np.uint8), mask


def scenes(root, count=20, split=None, first=0):
    for number in range(first, first + count):
        image, mask = scene(number)
        put(image, root / (split or "") / "images" / f"{number}.jpg", quality=95)
        put(mask, root / (split or "") / "masks" / f"{number}.png")
    return root


class Levels(torch.nn.Module):
    """A network whose stage map is the image itself, on a coarser grid, and its square."""

    def forward(self, images, stages=False):
        grid = torch.nn.functional.avg_pool2d(images, 2)
        maps = torch.cat([grid, grid.square(), grid**3], dim=1)
        return BackboneOutput(None, maps.mean(dim=(2, 3)), (maps,) * 4)


def to_tensor(image):
    return torch.from_numpy(np.asarray(image.convert("L").resize((40, 32)), np.float32) / 255)[None]


def test_maps_that_show_the_classes_are_segmented(tmp_path):
    train, test = load_masked(str(scenes(tmp_path)))
    assert len(train) + len(test) == 20
    assert not set(train.images.keys) & set(test.images.keys)
    found = segment(Levels(), train, test, to_tensor, QUIET)
    assert found.grid == (16, 20)
    assert found.miou > 80
    assert found.pixel_accuracy > found.miou
    again = segment(Levels(), train, test, to_tensor, QUIET)
    assert again == found


def test_the_score_is_that_of_a_plain_count(tmp_path):
    """Against loops over classes and pixels, with ignored pixels."""
    scenes(tmp_path, split="train")
    scenes(tmp_path, 4, split="test", first=100)
    for path in (tmp_path / "test" / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:5] = IGNORED
        put(mask, path)
    train, test = load_masked(str(tmp_path))
    seen = []

    class Kept(Levels):
        def forward(self, images, stages=False):
            seen.append(images)
            return super().forward(images, stages)

    found = segment(Kept(), train, test, to_tensor, QUIET)
    # Every image is read once.
    assert len(seen) == 24
    constant = segment(Constant(), train, test, to_tensor, QUIET)
    masks = np.stack([test.mask(i) for i in range(4)])
    used = masks != IGNORED
    most = 0
    share = (masks[used] == most).mean()
    present = len(np.unique(masks[used]))
    assert constant.pixel_accuracy == pytest.approx(100 * share)
    assert constant.miou == pytest.approx(100 * share / present)
    assert found.miou > constant.miou


class Constant(torch.nn.Module):
    """A network that sees nothing: the classifier can only choose the most frequent class."""

    def forward(self, images, stages=False):
        maps = images.new_ones(1, 2, 4, 4)
        return BackboneOutput(None, maps.mean(dim=(2, 3)), (maps,) * 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "masks" / "3.png").unlink(), "'images/3.jpg' has no mask"),
        (lambda root: put(noise(0), root / "masks" / "3.png"), "has colours"),
        (lambda root: put(scene(3)[1][:8], root / "masks" / "3.png"), "is 40x8, its image 40x32"),
        (lambda root: put(scene(3)[1].astype(np.uint16) * 999, root / "masks" / "3.png"), "classes are 0 to 254"),
        (lambda root: (root / "masks" / "3.png").write_bytes(b"x"), "cannot be read"),
        (lambda root: put(scene(3)[1], root / "masks" / "3.jpg"), "has two files named '3'"),
        (lambda root: [put(scene(i)[1] * 0, root / "masks" / f"{i}.png") for i in range(20)], "at least 2"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(tmp_path, change, said):
    change(scenes(tmp_path))
    with pytest.raises(UserError, match=said):
        segment(Levels(), *load_masked(str(tmp_path)), to_tensor, QUIET)


def test_palette_masks_are_class_numbers(tmp_path):
    scenes(tmp_path, 6)
    image = Image.fromarray(scene(3)[1], mode="L").convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
    image = Image.frombytes("P", image.size, scene(3)[1].tobytes())
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0] + [0] * 759)
    put(image, tmp_path / "masks" / "3.png")
    parts = load_masked(str(tmp_path))
    found = [part.mask(i) for part in parts for i, key in enumerate(part.images.keys) if key.endswith("/3.jpg")]
    assert np.array_equal(found[0], scene(3)[1])


def test_the_command_scores_a_run(tmp_path, capsys):
    scenes(tmp_path / "masked")
    out = tmp_path / "run"
    assert run(capsys, "fit", *TINY, "--method", "none", "--epochs", "1", "--out", out)[0] == 0
    code, shown, err = run(capsys, "eval", out, "--segmentation", tmp_path / "masked", "--json")
    assert code == 0, err
    found = json.loads(shown)
    assert found["grid"] == [4, 4]
    assert 20 < found["miou"] <= 100
    code, shown, err = run(capsys, "eval", out, "--segmentation", tmp_path / "masked", "--stage", "2")
    assert code == 0, err
    assert "Linear segmentation from stage 2" in shown
    for words, said in (
        (("--segmentation", tmp_path / "masked", "--knn"), "--knn has no effect with --segmentation"),
        (("--stage", "2"), "--stage is for --segmentation"),
    ):
        code, _, err = run(capsys, "eval", out, *words)
        assert (code, said in err) == (2, True), err
    code, _, err = run(capsys, "eval", out, "--segmentation", tmp_path / "none")
    assert (code, "no such folder" in err) == (2, True)
