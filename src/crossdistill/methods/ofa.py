"""OFA-KD (NeurIPS 2023): every student stage, projected to logits, learns from the teacher's prediction."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from crossdistill.errors import UserError
from crossdistill.losses.ofa import ofa_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.methods.projectors import OFAExits, check_stages
from crossdistill.types import BackboneOutput, BackboneSpec


@dataclass(frozen=True)
class OFAOptions:
    """Options of `ofa`."""

    stages: tuple[int, ...] = (1, 2, 3, 4)
    """Student stages that get an exit to logits."""
    eps: float = 1.0
    """epsilon, the modulation exponent of the true class; >= 1. 1 for CNN students on CIFAR-100, up to 1.5 else."""
    temperature: float = 1.0
    """T, what both logits are divided by; > 0."""
    weight: float = 1.0
    """Factor of the sum over the stages' exits; >= 0."""
    logit_weight: float = 1.0
    """Factor of the same loss on the student's own logits; >= 0."""
    standardise: bool = False
    """Standardise both sides' logits over the classes before the softmax (arXiv 2403.01427)."""

    def __post_init__(self) -> None:
        check_stages("ofa", self.stages)
        if not self.eps >= 1:
            raise UserError(f"ofa: eps is {self.eps}; it must be at least 1")
        if not self.temperature > 0:
            raise UserError(f"ofa: temperature is {self.temperature}; it must be positive")
        for name in ("weight", "logit_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"ofa: {name} is {getattr(self, name)}; it must not be negative")


class OFA(Method):
    """Adaptive target loss on the student's logits and on the exits of its stages.

    The exits are the projectors that HCD uses too, to max(D_s, D_t), and a linear classifier. The
    published code has other projectors for attention and MLP students; here every student's tokens
    are folded to their grid, so that one module serves all.

    Source: arXiv 2310.19444; the loss is `crossdistill.losses.ofa_loss`.
    """

    Options: ClassVar[type] = OFAOptions
    idea: ClassVar[str] = (
        "Project each student stage to logits, where architectures agree, and let all of them learn from the teacher's "
        "prediction with the true class enhanced."
    )
    paper: ClassVar[str] = "OFA-KD, NeurIPS 2023, arXiv 2310.19444"
    student_stages = True

    def __init__(self, options: OFAOptions, student: BackboneSpec, teacher: BackboneSpec | None) -> None:
        super().__init__(options, student, teacher)
        assert teacher is not None
        self.options = options
        self.weights = {"ofa_stages": options.weight, "ofa_logits": options.logit_weight}
        self.exits = OFAExits(student, teacher, options.stages)

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        assert teacher is not None
        assert student.stages is not None
        losses = [self._loss(logits, teacher.logits, targets) for logits in self.exits(student.stages)]
        own = self._loss(student.logits, teacher.logits, targets)
        return {"ofa_stages": torch.stack(losses).sum(), "ofa_logits": own}

    def _loss(self, ours: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:
        o = self.options
        return ofa_loss(*comparable(ours, theirs, o.standardise), targets, eps=o.eps, temperature=o.temperature)
