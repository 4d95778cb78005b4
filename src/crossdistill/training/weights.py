"""Where the weights of a model come from, and what is said where they do not state how its network is built."""

import contextlib
from pathlib import Path

from crossdistill.backbones.args import CONFIG_FILE, HUB_WEIGHTS_FILE, WEIGHTS_FILE, read_args
from crossdistill.backbones.build import own_img_size
from crossdistill.config import RunConfig
from crossdistill.config.code import is_code, is_transformers
from crossdistill.config.data import SMALL_IMAGE
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize, image_size, sides_of, written
from crossdistill.training.checkpoints import CHECKPOINTS
from crossdistill.training.run_folder import read_config


def has_weights(name: str | None, checkpoint: str | None, *, pretrained: bool) -> bool:
    """Return whether a teacher has other weights than random ones; own code may load some by itself."""
    return checkpoint is not None or pretrained or name is None or is_transformers(name) or is_code(name)


def random_weights_error(name: str, *, trusted: bool = True) -> UserError:
    """Make the error for a teacher with random weights; `trusted` says that trust_teacher lets it pass."""
    more = ". To continue anyway: --trust-teacher true" if trusted else ""
    return UserError(
        f"teacher {name!r} has random weights, so it has nothing to teach: give --teacher-checkpoint, or "
        f"--model.teacher-pretrained true{more}"
    )


def has_small_stem(weights: str) -> bool:
    """Return whether a run whose network has the small stem wrote these weights: a folder, or a file in one."""
    folder = _run_of(Path(weights).absolute())
    if folder is None:
        return False
    with contextlib.suppress(UserError):
        if (folder / CONFIG_FILE).is_file():
            return read_args(folder).small_images
        return read_config(folder).model.stem == "small"  # a run that is not finished
    return False


def _run_of(place: Path) -> Path | None:
    """Return the folder of the run that has written these weights; None for a file of another origin."""
    if place.is_dir():
        return place
    if place.parent.name == CHECKPOINTS:
        return place.parents[1]
    return place.parent if place.name in (WEIGHTS_FILE, HUB_WEIGHTS_FILE) else None


def file_note(weights: str | None, stem: str, size: ImageSize) -> str:
    """Say how a network for small images is built where its weights are a file, which states neither stem nor size."""
    if weights is None or Path(weights).is_dir() or max(sides_of(size)) > SMALL_IMAGE:
        return ""
    if has_small_stem(weights):
        return f"its weights are of a run with the small stem; its input has {written(size)} px"
    return f"its weights are a file, which states neither stem nor input size: {stem} stem, {written(size)} px"


def student_weights_note(config: RunConfig) -> str:
    """Say what was decided for weights of the trained model that state another input size, or none."""
    assert config.img_size is not None, "the settings are decided"
    size = image_size(config.img_size)
    loaded = config.model.student_pretrained or is_transformers(config.student)
    # The size of other libraries' weights and of own code is not known.
    known = ":" not in config.student or is_transformers(config.student)
    if loaded and known and own_img_size(config.student) != size:
        own = written(own_img_size(config.student))
        return f"its weights were trained at {own} px, and its input has {written(size)} px"
    return file_note(config.model.student_checkpoint, config.model.stem, size)
