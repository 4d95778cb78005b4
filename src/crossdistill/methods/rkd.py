"""RKD (CVPR 2019): the relations between the images of a batch are those of the teacher."""

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.config.validation import NonNegative, settings
from crossdistill.losses.rkd import rkd_angle_loss, rkd_distance_loss
from crossdistill.methods.base import Method
from crossdistill.types import BackboneOutput, Needs, Reads


@settings
class RKDOptions:
    """Options of `rkd`."""

    distance_weight: NonNegative = 25.0
    """Factor of the distance term; >= 0."""
    angle_weight: NonNegative = 50.0
    """Factor of the angle term, which takes O(B^3) memory; >= 0. 0 leaves it out."""


class RKD(Method):
    """Distances and angles between embeddings; no training-only parts.

    Source: arXiv 1904.05068.
    """

    Options: ClassVar[type] = RKDOptions
    idea: ClassVar[str] = "Distances and angles between the embeddings of a batch are those of the teacher."
    paper: ClassVar[str] = "RKD, CVPR 2019, arXiv 1904.05068"
    needs = Needs(student=Reads(embedding=True), teacher=Reads(embedding=True))

    def __init__(self, options: RKDOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        self.weights = {"rkd_distance": options.distance_weight, "rkd_angle": options.angle_weight}
        self.weights = {name: weight for name, weight in self.weights.items() if weight}

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        losses = {"rkd_distance": rkd_distance_loss, "rkd_angle": rkd_angle_loss}
        return {name: losses[name](student.embedding, teacher.embedding) for name in self.weights}
