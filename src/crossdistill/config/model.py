"""Settings for building the two models."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from crossdistill.config.validation import OptionalNonNegativeInt, settings
from crossdistill.errors import UserError
from crossdistill.image_size import image_size, written

Stem = Literal["auto", "native", "small"]


def _sizes(value: int | str | list[int | str | None] | None) -> int | str | list[int | str | None] | None:
    if isinstance(value, list):
        return [None if size is None else written(image_size(size)) for size in value]
    return None if value is None else written(image_size(value))


def _arguments(value: dict[str, Any]) -> dict[str, Any]:
    for name in value:
        if name in DECIDED_BY_SETTINGS:
            decided = DECIDED_BY_SETTINGS[name]
            raise UserError(f"student_args and teacher_args: {name!r} is not for the constructor; {decided}")
    return value


DECIDED_BY_SETTINGS = {
    "name": "give --student or --teacher",
    "num_classes": "the data decides it (for a teacher: model.teacher_classes)",
    "in_chans": "the data decides it (or loader.in_chans)",
    "img_size": "give --img-size or model.teacher_img_size",
    "pretrained": "give model.student_pretrained or model.teacher_pretrained",
    "checkpoint": "give model.student_checkpoint or --teacher-checkpoint",
    "checkpoint_key": "give model.student_checkpoint_key or model.teacher_checkpoint_key",
    "new_head": "give model.new_head",
    "checkpoint_path": "give model.student_checkpoint or --teacher-checkpoint",
    "small_images": "give model.stem or model.teacher_stem",
    "stages": "give model.student_stages or model.teacher_stages",
}
"""Arguments that cannot be passed to a constructor, because a setting decides them."""
_Arguments = Annotated[dict[str, Any], AfterValidator(_arguments)]


@settings
class ModelConfig:
    """How the two models are built."""

    stem: Stem = "auto"
    """"small" builds convolutional networks without early strides and transformers with small patches; "native" builds
    the architecture as it is; "auto" is small for images of at most 64 px, except for pretrained weights, a file of
    weights (unless a run with the small stem has written it), and networks of your own code."""
    teacher_stem: Stem | None = None
    """The same for the teacher; null uses model.stem."""
    student_pretrained: bool = False
    """Start the student from the pretrained weights of timm or torchvision."""
    teacher_pretrained: bool = False
    """Use the pretrained weights of timm or torchvision for the teacher."""
    student_checkpoint: str | None = None
    """Weights that the student starts from: a file, or the folder of a finished run."""
    student_checkpoint_key: str | None = None
    """Which network of the student's checkpoint is loaded, where the file holds several that fit."""
    teacher_checkpoint_key: str | None = None
    """The same for the teacher."""
    new_head: bool = False
    """Leave out the classifier of student_checkpoint, or of the pretrained weights, and train a new one, for data with
    other classes; the command `teacher` does so with teacher_checkpoint."""
    student_args: _Arguments = field(default_factory=dict)
    """Arguments of the student's constructor, e.g. {drop_path_rate: 0.1}."""
    teacher_args: _Arguments = field(default_factory=dict)
    """Arguments of the teacher's constructor."""
    teacher_img_size: Annotated[int | str | list[int | str | None] | None, AfterValidator(_sizes)] = None
    """The teacher's input size, as img_size, or a list for several; null uses img_size where that is given or the
    images are small, else the teacher's own. A finished run knows its own."""
    teacher_classes: OptionalNonNegativeInt | list[str] | str = None
    """Classes of the teacher's classifier: their number (0 builds it without one), or their names in the order of its
    logits, as a list or a text file with one name in each line. Null uses the number of its weights' classes, or of the
    data's."""
    student_stages: list[str] | None = None
    """Four module names, shallow to deep, where the student's stages cannot be found."""
    teacher_stages: list[str] | None = None
    """Four module names, shallow to deep, where the teacher's stages cannot be found."""
