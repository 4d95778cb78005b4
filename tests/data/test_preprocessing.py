"""The preprocessing without torch is timm's, bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from crossdistill import UserError
from crossdistill.config import AugmentConfig
from crossdistill.data.preprocessing import Preprocessing, read_preprocessing
from crossdistill.data.transforms import eval_transform
from crossdistill.image_size import sides_of

SIZES = [(8, 8), (33, 47), (31, 200), (97, 95), (150, 90), (32, 32), (3, 5)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("mode", "crop"), [("center", 0.875), ("center", 1.0), ("squash", 1.0), ("squash", 0.9)])
@pytest.mark.parametrize("size", [32, 45, (64, 32), (45, 70)])
def test_it_is_that_of_timm(channels, mode, crop, size):
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    look = Preprocessing(input_size=(channels, *sides_of(size)), mean=mean, std=std, crop_pct=crop, crop_mode=mode)
    config, spec = AugmentConfig(crop_mode=mode, crop_pct=crop), SimpleNamespace(in_chans=channels, mean=mean, std=std)
    theirs = eval_transform(config, spec, size)
    rng = np.random.default_rng(0)
    for height, width in SIZES:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        assert np.array_equal(look(image), theirs(image).numpy())


@pytest.mark.parametrize(
    "changes",
    [
        {"input_size": [3, 32, 0]},
        {"input_size": [3, 10**6, 10**6]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"std": [0.5, 0.5, 0.0]},
        {"input_size": [2, 32, 32]},
        {"mean": [0.5]},
        {"crop_pct": 0.0},
        {"crop_mode": "border"},
        {"interpolation": "bilinear"},
        {"std": "x"},
    ],
)
def test_what_it_cannot_do_is_refused(changes):
    plain = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "crop_mode": "center"}
    assert read_preprocessing({"pretrained_cfg": {**plain, "architecture": "x"}}, "file: ").resized == (32, 32)
    with pytest.raises(UserError) as refused:
        read_preprocessing({"preprocessing": {**plain, **changes}}, "file: ")
    assert "\n" not in str(refused.value)
