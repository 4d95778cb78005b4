"""DIST (NeurIPS 2022): the student's predictions correlate with the teacher's, by image and by class."""

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.config.validation import NonNegative, Positive, settings
from crossdistill.losses.dist import dist_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.types import BackboneOutput, Needs, Reads


@settings
class DISTOptions:
    """Options of `dist`."""

    beta: NonNegative = 1.0
    """beta, weight of the correlation over the classes of an image; >= 0."""
    gamma: NonNegative = 1.0
    """gamma, weight of the correlation over the images of a class; >= 0."""
    temperature: Positive = 1.0
    """T, divisor of both logits; > 0."""
    weight: NonNegative = 1.0
    """Factor of the term beside the task loss; >= 0."""
    standardise: bool = False
    """Standardise the logits of both sides over the classes before the softmax (arXiv 2403.01427)."""


class DIST(Method):
    """Pearson correlations of softened predictions; no training-only parts."""

    Options: ClassVar[type] = DISTOptions
    idea: ClassVar[str] = "Keep the relations within the teacher's predictions, not their values."
    paper: ClassVar[str] = "DIST, NeurIPS 2022, arXiv 2205.10536"
    needs = Needs(student=Reads(logits=True), teacher=Reads(logits=True))

    def __init__(self, options: DISTOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.weights = {"dist": options.weight}

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        o = self.options
        logits = comparable(student.require_logits(), teacher.require_logits(), o.standardise)
        return {"dist": dist_loss(*logits, beta=o.beta, gamma=o.gamma, temperature=o.temperature)}
