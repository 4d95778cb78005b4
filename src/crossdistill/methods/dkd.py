"""DKD (CVPR 2022): the true class and the other classes are distilled apart."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from crossdistill.errors import UserError
from crossdistill.losses.dkd import dkd_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.types import BackboneOutput, BackboneSpec


@dataclass(frozen=True)
class DKDOptions:
    """Options of `dkd`."""

    alpha: float = 1.0
    """alpha, weight of the true class against all others (TCKD); >= 0."""
    beta: float = 2.0
    """beta, weight of the prediction among the other classes (NCKD); >= 0."""
    temperature: float = 1.0
    """T, what both logits are divided by; > 0. The DKD paper uses 4 for CIFAR-100."""
    weight: float = 1.0
    """Factor of the term beside the task loss; >= 0."""
    standardise: bool = False
    """Standardise both sides' logits over the classes before the softmax (arXiv 2403.01427)."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"dkd: temperature is {self.temperature}; it must be positive")
        for name in ("alpha", "beta", "weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"dkd: {name} is {getattr(self, name)}; it must not be negative")


class DKD(Method):
    """alpha * TCKD + beta * NCKD on logits; no training-only parts."""

    Options: ClassVar[type] = DKDOptions
    idea: ClassVar[str] = "Imitate what the teacher says of the true class, and apart from it what of the others."
    paper: ClassVar[str] = "DKD, CVPR 2022, arXiv 2203.08679"

    def __init__(self, options: DKDOptions, student: BackboneSpec, teacher: BackboneSpec | None) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.weights = {"dkd": options.weight}

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        assert teacher is not None
        o = self.options
        ours, theirs = comparable(student.logits, teacher.logits, o.standardise)
        return {"dkd": dkd_loss(ours, theirs, targets, alpha=o.alpha, beta=o.beta, temperature=o.temperature)}
