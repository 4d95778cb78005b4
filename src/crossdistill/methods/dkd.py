"""DKD (CVPR 2022): the true class and the other classes are distilled separately."""

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.config.validation import NonNegative, Positive, settings
from crossdistill.errors import UserError
from crossdistill.losses.dkd import dkd_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.types import BackboneOutput, Needs, Reads


@settings
class DKDOptions:
    """Options of `dkd`."""

    alpha: NonNegative = 1.0
    """alpha, weight of the true class against all others (TCKD); >= 0."""
    beta: NonNegative = 2.0
    """beta, weight of the prediction among the other classes (NCKD); >= 0."""
    temperature: Positive = 1.0
    """T, divisor of both logits; > 0. The DKD paper uses 4 for CIFAR-100."""
    weight: NonNegative = 1.0
    """Factor of the term beside the task loss; >= 0."""
    standardise: bool = False
    """Standardise the logits of both sides over the classes before the softmax (arXiv 2403.01427)."""


class DKD(Method):
    """alpha * TCKD + beta * NCKD on logits; no training-only parts."""

    Options: ClassVar[type] = DKDOptions
    idea: ClassVar[str] = (
        "Imitate the teacher's prediction of the true class and, separately, its prediction among the other classes."
    )
    paper: ClassVar[str] = "DKD, CVPR 2022, arXiv 2203.08679"
    needs = Needs(student=Reads(logits=True), teacher=Reads(logits=True), labels=True)

    def __init__(self, options: DKDOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        if student.spec.num_classes < 2:
            raise UserError("dkd compares the true class with the others, but there is one class")
        self.options = options
        self.weights = {"dkd": options.weight}

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        o = self.options
        logits = comparable(student.require_logits(), teacher.require_logits(), o.standardise)
        return {"dkd": dkd_loss(*logits, targets, alpha=o.alpha, beta=o.beta, temperature=o.temperature)}
