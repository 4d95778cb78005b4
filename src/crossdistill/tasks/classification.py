"""Classification: cross entropy on class numbers or probabilities."""

import torch.nn.functional as F
from torch import Tensor

from crossdistill.types import BackboneOutput


class Classification:
    """Cross entropy of the student's logits, in nats.

    Targets (B,) class numbers, smoothed by `label_smoothing`, or (B, K) probabilities, which are not smoothed.
    """

    monitor = "val/top1"
    """The held-out score that chooses the best checkpoint."""
    mode = "max"
    labelled = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def loss(self, student: BackboneOutput, targets: Tensor) -> Tensor:
        """Return the task loss, a scalar."""
        smoothing = self.label_smoothing if targets.ndim == 1 else 0.0
        return F.cross_entropy(student.require_logits().float(), targets, label_smoothing=smoothing)
