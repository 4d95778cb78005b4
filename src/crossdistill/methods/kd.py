"""KD (Hinton, Vinyals, Dean 2015): the student imitates the teacher's softened prediction."""

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.config.validation import NonNegative, Positive, settings
from crossdistill.losses.kd import kd_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.types import BackboneOutput, Needs, Reads


@settings
class KDOptions:
    """Options of `kd`."""

    temperature: Positive = 1.0
    """T, divisor of both logits; > 0. 1 as in the tables of the cross-architecture papers; 4 is usual for images of
    CIFAR's size."""
    weight: NonNegative = 1.0
    """Factor of the KD term beside the task loss; >= 0."""
    standardise: bool = False
    """Standardise the logits of both sides over the classes before the softmax (arXiv 2403.01427)."""


class KD(Method):
    """T^2 * KL(teacher || student) on logits; no training-only parts."""

    Options: ClassVar[type] = KDOptions
    idea: ClassVar[str] = "The student imitates the teacher's softened class probabilities."
    paper: ClassVar[str] = "Hinton, Vinyals, Dean 2015, arXiv 1503.02531"
    needs = Needs(student=Reads(logits=True), teacher=Reads(logits=True))

    def __init__(self, options: KDOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.weights = {"kd": options.weight}

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        logits = comparable(student.require_logits(), teacher.require_logits(), self.options.standardise)
        return {"kd": kd_loss(*logits, temperature=self.options.temperature)}
