"""What a method is: named options, training-only parts, and a map from two views to named terms."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from crossdistill.backbones.base import Backbone
from crossdistill.losses.kd import standardise_logits
from crossdistill.types import BackboneOutput, BackboneSpec


@dataclass(frozen=True)
class NoOptions:
    """A method without options."""


def comparable(student: Tensor, teacher: Tensor, standardise: bool) -> tuple[Tensor, Tensor]:
    """Give two sets of logits as a logit loss compares them: as they are, or standardised over the classes."""
    return (standardise_logits(student), standardise_logits(teacher)) if standardise else (student, teacher)


class Method(nn.Module):
    """Base of all methods.

    A method owns the parts that exist only in training and knows neither the task loss nor the
    trainer. Its constructor takes `options` (an instance of `Options`), `student` and `teacher`
    (`BackboneSpec`s; `teacher` is None only where `uses_teacher` is False), and raises UserError
    for a pair it cannot serve. `forward` returns unweighted scalars by name; `weights` says by
    what the distiller multiplies each.
    """

    Options: ClassVar[type] = NoOptions
    idea: ClassVar[str]
    """One sentence for `crossdistill methods`."""
    paper: ClassVar[str]
    uses_teacher: ClassVar[bool] = True
    one_teacher: bool = False
    """Whether the method looks into its teacher, and so takes no group of them."""
    student_stages: bool = False
    """Whether the student's four stage maps are needed; an option may ask for them."""
    teacher_stages: tuple[int, ...] = ()
    """The teacher's stages, 1 to 4, whose maps are read."""

    runs_student: bool = False
    """Whether the method runs modules of the student itself, beside the student's own forward."""
    runs_teacher: bool = False

    weights: dict[str, float]

    def __init__(self, options: object, student: BackboneSpec, teacher: BackboneSpec | None) -> None:
        super().__init__()
        self.weights = {}

    def bind(self, student: Backbone, teacher: Backbone | None) -> None:
        """Get to know the two models themselves, once, before training; most methods need only their specs.

        Weights shared with a model must not be registered here. Raises UserError for a pair that cannot
        be served.
        """

    def release_teacher(self) -> None:
        """Let go of those parts of the teacher that its stored outputs make superfluous."""

    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        """Give the method's terms, unweighted scalars by name."""
        raise NotImplementedError
