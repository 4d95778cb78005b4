"""Stage maps on a coarser grid."""

import torch.nn.functional as F
from torch import Tensor


def pooled(stage: Tensor, side: int | None) -> Tensor:
    """Average a map (B, C, H, W) to at most `side` cells along each side; None returns it as it is."""
    height, width = stage.shape[-2:]
    if side is None or max(height, width) <= side:
        return stage
    return F.adaptive_avg_pool2d(stage, (min(side, height), min(side, width)))
