"""Knowledge distillation (Hinton, Vinyals, Dean 2015): the student imitates the teacher's softened prediction."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from crossdistill.errors import UserError
from crossdistill.losses.kd import kd_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.types import BackboneOutput, BackboneSpec


@dataclass(frozen=True)
class KDOptions:
    """Options of `kd`."""

    temperature: float = 1.0
    """T, what both logits are divided by; > 0. 1 as in the cross-architecture papers' tables; 4 is usual for
    CIFAR-sized images."""
    weight: float = 1.0
    """Factor of the KD term beside the task loss; >= 0."""
    standardise: bool = False
    """Standardise both sides' logits over the classes before the softmax (arXiv 2403.01427)."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"kd: temperature is {self.temperature}; it must be positive")
        if not self.weight >= 0:
            raise UserError(f"kd: weight is {self.weight}; it must not be negative")


class KD(Method):
    """T^2 * KL(teacher || student) on logits; no training-only parts."""

    Options: ClassVar[type] = KDOptions
    idea: ClassVar[str] = "The student imitates the teacher's softened class probabilities."
    paper: ClassVar[str] = "Hinton, Vinyals, Dean 2015, arXiv 1503.02531"

    def __init__(self, options: KDOptions, student: BackboneSpec, teacher: BackboneSpec | None) -> None:
        super().__init__(options, student, teacher)
        self.temperature, self.standardise = options.temperature, options.standardise
        self.weights = {"kd": options.weight}

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        assert teacher is not None
        ours, theirs = comparable(student.logits, teacher.logits, self.standardise)
        return {"kd": kd_loss(ours, theirs, temperature=self.temperature)}
