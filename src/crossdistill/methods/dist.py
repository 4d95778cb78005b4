"""DIST (NeurIPS 2022): predictions correlate with the teacher's, image by image and class by class."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from crossdistill.errors import UserError
from crossdistill.losses.dist import dist_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.types import BackboneOutput, BackboneSpec


@dataclass(frozen=True)
class DISTOptions:
    """Options of `dist`."""

    beta: float = 1.0
    """beta, weight of the correlation over the classes of an image; >= 0."""
    gamma: float = 1.0
    """gamma, weight of the correlation over the images of a class; >= 0."""
    temperature: float = 1.0
    """T, what both logits are divided by; > 0."""
    weight: float = 1.0
    """Factor of the term beside the task loss; >= 0."""
    standardise: bool = False
    """Standardise both sides' logits over the classes before the softmax (arXiv 2403.01427)."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"dist: temperature is {self.temperature}; it must be positive")
        for name in ("beta", "gamma", "weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"dist: {name} is {getattr(self, name)}; it must not be negative")


class DIST(Method):
    """Pearson correlations of softened predictions; no training-only parts."""

    Options: ClassVar[type] = DISTOptions
    idea: ClassVar[str] = "Keep the relations in the teacher's predictions, not their values."
    paper: ClassVar[str] = "DIST, NeurIPS 2022, arXiv 2205.10536"

    def __init__(self, options: DISTOptions, student: BackboneSpec, teacher: BackboneSpec | None) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.weights = {"dist": options.weight}

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        assert teacher is not None
        o = self.options
        ours, theirs = comparable(student.logits, teacher.logits, o.standardise)
        return {"dist": dist_loss(ours, theirs, beta=o.beta, gamma=o.gamma, temperature=o.temperature)}
