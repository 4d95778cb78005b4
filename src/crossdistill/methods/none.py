"""Plain training: the yardstick every method is compared with."""

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from crossdistill.methods.base import Method
from crossdistill.types import BackboneOutput


class Plain(Method):
    """The task loss alone; no teacher is needed or run."""

    idea: ClassVar[str] = "Train on the labels alone, the yardstick for every other method."
    paper: ClassVar[str] = "-"
    uses_teacher: ClassVar[bool] = False

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        return {}
