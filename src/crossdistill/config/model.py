"""Settings of how the two models are built."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from crossdistill.config.validation import CHECKED, OptionalNonNegativeInt
from crossdistill.errors import UserError

Stem = Literal["auto", "native", "small"]


def _sizes(value: int | list[int | None] | None) -> int | list[int | None] | None:
    for size in value if isinstance(value, list) else [value]:
        if size is not None and size < 1:
            raise UserError(f"model.teacher_img_size is {value}; a size must be at least 1")
    return value


@dataclass(frozen=True, config=CHECKED)
class ModelConfig:
    """How the two models are built."""

    stem: Stem = "auto"
    """"small" builds convolutional networks without early strides and transformers with small patches; "native" builds
    the architecture as it is; "auto" is small for images of at most 64 px unless pretrained weights are asked for."""
    teacher_stem: Stem | None = None
    """The same for the teacher; null uses model.stem."""
    student_pretrained: bool = False
    """Start the student from the pretrained weights of timm or torchvision."""
    teacher_pretrained: bool = False
    """Use the pretrained weights of timm or torchvision for the teacher."""
    student_checkpoint: str | None = None
    """Weights file or finished run the student starts from."""
    student_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the student's constructor, e.g. {drop_path_rate: 0.1}."""
    teacher_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the teacher's constructor."""
    teacher_img_size: Annotated[int | list[int | None] | None, AfterValidator(_sizes)] = None
    """Side in pixels of the teacher's input, or a list for several; null uses img_size where that is given or the
    images are small, else the teacher's own. A finished run knows its own."""
    teacher_classes: OptionalNonNegativeInt = None
    """Classes of the teacher's classifier; 0 builds it without one, null uses those of the data."""
    student_stages: list[str] | None = None
    """Four module names, shallow to deep, where the student's stages cannot be found."""
    teacher_stages: list[str] | None = None
    """Four module names, shallow to deep, where the teacher's stages cannot be found."""
