"""Classification: cross entropy on class numbers or probabilities."""

import torch.nn.functional as F
from torch import Tensor

from crossdistill.distributed import mean_detached, processes
from crossdistill.types import NO_LABEL, BackboneOutput


class Classification:
    """Cross entropy of the student's logits, in nats.

    Targets (B,) class numbers, smoothed by `label_smoothing`, or (B, K) probabilities, which are not smoothed. With
    `partly`, images whose target is -1 have no label, and are left out of the mean; where no image has one, the loss
    is 0.
    """

    monitor = "val/top1"
    """The held-out score that chooses the best checkpoint."""
    mode = "max"
    labelled = True

    def __init__(self, label_smoothing: float = 0.0, *, partly: bool = False) -> None:
        self.label_smoothing = label_smoothing
        self.partly = partly

    def loss(self, student: BackboneOutput, targets: Tensor) -> Tensor:
        """Return the task loss, a scalar."""
        smoothing = self.label_smoothing if targets.ndim == 1 else 0.0
        logits = student.require_logits().float()
        if self.partly:
            total = F.cross_entropy(logits, targets, label_smoothing=smoothing, ignore_index=NO_LABEL, reduction="sum")
            # The mean over the labelled images of all processes.
            return total / mean_detached((targets != NO_LABEL).sum().float()).clamp(min=1 / processes())
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
