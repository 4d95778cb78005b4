"""FitNet (ICLR 2015): a feature map of the student equals one of the teacher's."""

from typing import ClassVar, Literal

from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.backbones.pooling import on_common_grid
from crossdistill.config.validation import NonNegative, settings
from crossdistill.losses.fitnet import fitnet_loss
from crossdistill.methods.base import Method
from crossdistill.types import BackboneOutput, Needs, Reads

StageNumber = Literal[1, 2, 3, 4]


@settings
class FitNetOptions:
    """Options of `fitnet`."""

    stage: StageNumber = 4
    """Student stage that is compared."""
    teacher_stage: StageNumber = 4
    """Teacher stage that it is compared with."""
    weight: NonNegative = 100.0
    """Factor of the term beside the task loss; >= 0. Not in the paper, which trains in two phases; 100 is usual where
    the term is added to the task loss."""


class FitNet(Method):
    """Mean squared difference of two stage maps, after a 1x1 convolution of the student's to the teacher's channels.

    Where the grids differ, both maps are average-pooled to the smaller number of cells along each side, so that the
    term exists for any pair; the paper needs equal grids.

    Source: arXiv 1412.6550.
    """

    Options: ClassVar[type] = FitNetOptions
    idea: ClassVar[str] = "A feature map of the student, after a 1x1 convolution, equals one of the teacher's."
    paper: ClassVar[str] = "FitNets, ICLR 2015, arXiv 1412.6550"
    needs = Needs(student=Reads(stages=(4,)), teacher=Reads(stages=(4,)))

    def __init__(self, options: FitNetOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.weights = {"fitnet": options.weight}
        channels = student.spec.channels(options.stage), teacher.spec.channels(options.teacher_stage)
        self.regressor = nn.Conv2d(*channels, 1)

    @classmethod
    @override
    def needs_of(
        cls, options: FitNetOptions, student: Backbone | None = None, teacher: Backbone | None = None
    ) -> Needs:
        return Needs(student=Reads(stages=(options.stage,)), teacher=Reads(stages=(options.teacher_stage,)))

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        ours = self.regressor(student.require_stages()[self.options.stage - 1])
        theirs = teacher.require_stages()[self.options.teacher_stage - 1]
        return {"fitnet": fitnet_loss(*on_common_grid(ours, theirs))}
