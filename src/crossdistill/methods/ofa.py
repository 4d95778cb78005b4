"""OFA-KD (NeurIPS 2023): every student stage, projected to logits, learns from the teacher's prediction."""

from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.config.validation import AtLeastOne, NonNegative, Positive, settings
from crossdistill.losses.ofa import ofa_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.methods.projectors import OFAExits, Stages
from crossdistill.types import BackboneOutput, Needs, Reads


@settings
class OFAOptions:
    """Options of `ofa`."""

    stages: Stages = (1, 2, 3, 4)
    """Student stages that are projected to logits."""
    eps: AtLeastOne = 1.0
    """epsilon, modulation exponent of the true class; >= 1. 1 for CNN students on CIFAR-100, up to 1.5 elsewhere."""
    temperature: Positive = 1.0
    """T, divisor of both logits; > 0."""
    weight: NonNegative = 1.0
    """Factor of the sum over the exits of the stages; >= 0. 1 is the default of the authors' code; their runs of CNN
    students on CIFAR-100 used 0.1, as the recipes for these do."""
    logit_weight: NonNegative = 1.0
    """Factor of the same loss on the student's own logits; >= 0."""
    standardise: bool = False
    """Standardise the logits of both sides over the classes before the softmax (arXiv 2403.01427)."""


class OFA(Method):
    """Adaptive target loss on the student's logits and on the exits of its stages.

    The exits are the projectors that HCD uses as well, to max(D_s, D_t), and a linear classifier. The authors' code has
    other projectors for attention and MLP students; here the tokens of every student are arranged as a map, so that one
    module serves all.

    Source: arXiv 2310.19444; the loss is `crossdistill.losses.ofa_loss`.
    """

    Options: ClassVar[type] = OFAOptions
    idea: ClassVar[str] = (
        "Project each student stage to logits, where architectures agree, and let all of them learn from the teacher's "
        "prediction with the true class enhanced."
    )
    paper: ClassVar[str] = "OFA-KD, NeurIPS 2023, arXiv 2310.19444"
    needs = Needs(student=Reads(logits=True, stages=(1, 2, 3, 4)), teacher=Reads(logits=True), labels=True)
    unmeasured = frozenset({"ofa_stages"})

    def __init__(self, options: OFAOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.weights = {"ofa_stages": options.weight, "ofa_logits": options.logit_weight}
        self.exits = OFAExits(student.spec, teacher.spec, options.stages)

    @classmethod
    @override
    def needs_of(cls, options: OFAOptions, student: Backbone | None = None, teacher: Backbone | None = None) -> Needs:
        return Needs(student=Reads(logits=True, stages=options.stages), teacher=cls.needs.teacher, labels=True)

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        goal = teacher.require_logits()
        losses = [self._loss(logits, goal, targets) for logits in self.exits(student.require_stages())]
        own = self._loss(student.require_logits(), goal, targets)
        return {"ofa_stages": torch.stack(losses).sum(), "ofa_logits": own}

    def _loss(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        o = self.options
        return ofa_loss(*comparable(student, teacher, o.standardise), targets, eps=o.eps, temperature=o.temperature)
