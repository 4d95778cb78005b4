"""CC (ICCV 2019): neighbours in a batch differ from the teacher in the same way."""

from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.config.validation import NonNegative, PositiveInt, settings
from crossdistill.losses.cc import cc_loss
from crossdistill.methods.base import Method
from crossdistill.types import BackboneOutput, Needs, Reads


@settings
class CCOptions:
    """Options of `cc`."""

    width: PositiveInt = 128
    """Width that both embeddings are projected to; >= 1."""
    scale: NonNegative = 0.02
    """Scale of the correlation in the loss; >= 0."""
    weight: NonNegative = 1.0
    """Factor of the term beside the task loss; >= 0."""


class CC(Method):
    """Correlation congruence of linear embeddings.

    The teacher's linear embedding is fixed at its random initial values. With a trained one both embeddings could go
    to zero, where the loss is smallest and nothing is learned.

    Source: arXiv 1904.01802.
    """

    Options: ClassVar[type] = CCOptions
    idea: ClassVar[str] = "Neighbouring images in a batch differ from the teacher's embedding in the same way."
    paper: ClassVar[str] = "Correlation congruence, ICCV 2019, arXiv 1904.01802"
    needs = Needs(student=Reads(embedding=True), teacher=Reads(embedding=True))

    def __init__(self, options: CCOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.weights = {"cc": options.weight}
        self.embed = nn.Linear(student.spec.embedding_dim, options.width)
        fixed = nn.Linear(teacher.spec.embedding_dim, options.width)
        self.teacher_weight: Tensor
        self.teacher_bias: Tensor
        self.register_buffer("teacher_weight", fixed.weight.detach())
        self.register_buffer("teacher_bias", fixed.bias.detach())

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        theirs = nn.functional.linear(teacher.embedding, self.teacher_weight, self.teacher_bias)
        return {"cc": cc_loss(self.embed(student.embedding), theirs, scale=self.options.scale)}
