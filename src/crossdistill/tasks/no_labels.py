"""Images without labels: only the terms of the method train the student."""

from torch import Tensor

from crossdistill.types import BackboneOutput


class NoLabels:
    """The task of data without labels; its loss is 0."""

    monitor = "val/distill_loss"
    """The held-out score that chooses the best checkpoint: the method's weighted terms."""
    mode = "min"
    labelled = False

    def loss(self, student: BackboneOutput, targets: Tensor) -> Tensor:
        """Return 0, a scalar."""
        return student.embedding.new_zeros(())
