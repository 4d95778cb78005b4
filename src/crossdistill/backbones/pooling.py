"""Stage maps on coarser grids."""

import torch.nn.functional as F
from torch import Tensor


def pooled(stage: Tensor, side: int | None) -> Tensor:
    """Average a map (B, C, H, W) to at most `side` cells along each side; None returns it as it is."""
    height, width = stage.shape[-2:]
    if side is None or max(height, width) <= side:
        return stage
    return F.adaptive_avg_pool2d(stage, (min(side, height), min(side, width)))


def on_common_grid(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Average two maps (B, C, H, W) and (B, C', H', W') to one grid: along each side, the smaller number of cells."""
    grid = (min(first.shape[-2], second.shape[-2]), min(first.shape[-1], second.shape[-1]))
    return F.adaptive_avg_pool2d(first, grid), F.adaptive_avg_pool2d(second, grid)
