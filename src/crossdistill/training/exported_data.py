"""The images that an export is checked and calibrated on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from crossdistill.backbones import Backbone
from crossdistill.config import RunConfig
from crossdistill.config.files import SETS
from crossdistill.data.class_names import canonical_name, name_difference
from crossdistill.data.datasets import Arrays, Images, Part
from crossdistill.data.splits import ImageData
from crossdistill.errors import UserError
from crossdistill.image_size import sides_of
from crossdistill.training.inputs import report_data
from crossdistill.training.run_folder import read_config
from crossdistill.training.score import data_of_run, without_trained

_NOISE = 64


@dataclass(frozen=True)
class HeldOut:
    """Test images, and images to calibrate on, which are neither test nor training images.

    `labels` maps the data's class numbers to those of the model; None without labels. `about` says what the images are.
    """

    images: Images
    labels: list[int] | None
    calibration: Images | None
    calibration_name: str
    about: str


def find_held_out(run: str, config: RunConfig, backbone: Backbone, console: Console) -> HeldOut:
    """Find the test and validation images of a run, or of `config.data` where that is another set.

    Where the run's own data is gone, noise is returned, with a note. Raises UserError for data of other classes.
    """
    if _is_gone(run, config):
        text = f"note: the data of the run, {config.data!r}, is not there: the export is checked on noise; give --data"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        channels = (3,) if backbone.spec.in_chans == 3 else ()
        shape = (_NOISE, *sides_of(backbone.img_size), *channels)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return HeldOut(Arrays(pixels, [0] * _NOISE), None, None, "", "images of noise, since the data is not there")
    data, known = data_of_run(run, config, backbone.spec.in_chans)
    report_data(data, console)
    test: Images = data.test
    val: Images | None = data.val
    if known is not None:
        test = without_trained(test, known, run, console)
        left = sorted(set(range(len(data.val))) - set(known.find(data.val)))
        val = Part(data.val, left) if left else None
    kind = "test images" if known is None else f"test images of {config.data!r}"
    name = "validation images, which are neither trained on nor scored"
    return HeldOut(test, _numbers(backbone, run, data), val, name, kind)


def _is_gone(run: str, config: RunConfig) -> bool:
    data = read_config(Path(run)).data
    return config.data == data and data != "digits" and not data.startswith(SETS) and not Path(data).exists()


def _numbers(backbone: Backbone, run: str, data: ImageData) -> list[int] | None:
    """Return the model's class number of each class of the data; None where it has no such classes."""
    if not data.labelled or not backbone.spec.num_classes:
        return None
    names = backbone.class_names or data.class_names
    # Systems differ in the form of Unicode that they store the names of files in.
    known, wanted = (list(map(canonical_name, one)) for one in (names, data.class_names))
    if len(names) != backbone.spec.num_classes or set(known) != set(wanted):
        difference = name_difference("the model", names, "the data", data.class_names)
        raise UserError(f"the model in {run!r} knows other classes than {data.name!r}: {difference}")
    return [known.index(name) for name in wanted]
