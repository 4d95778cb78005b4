"""Stage maps as samples: both maps pooled to a common grid, and some of its cells taken as rows."""

import math

import torch
from torch import Tensor, nn

from crossdistill.backbones.pooling import on_common_grid, pooled
from crossdistill.methods.projectors import linear_map
from crossdistill.types import BackboneSpec

_GOLDEN = (math.sqrt(5) - 1) / 2


class Cells(nn.Module):
    """Rows of the student's and of the teacher's maps, cell by cell, for each of some stages.

    A pair of maps is pooled to the smaller of its grids, at most `side` cells along a side. `samples` cells of each
    image, the same of every image, are rows of two matrices (B * samples, C_t); 0 takes all cells. A counter of steps
    selects them, so they are the same in all processes and after a resume, and every cell is used in turn. The
    student's rows are mapped linearly to the teacher's channels, without bias.
    """

    steps: Tensor

    def __init__(
        self, student: BackboneSpec, teacher: BackboneSpec, stages: tuple[int, ...], side: int, samples: int
    ) -> None:
        super().__init__()
        self.stages, self.side, self.samples = stages, side, samples
        self.maps = nn.ModuleList(linear_map(student.channels(stage), teacher.channels(stage)) for stage in stages)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
        """Return the rows of each stage, (B * samples, C_t) of both sides, from all four stage maps of both."""
        pairs = []
        for stage, to_teacher in zip(self.stages, self.maps, strict=True):
            # A cache holds the teacher's maps pooled to `side`, so they are pooled to it first here as well.
            ours, theirs = student[stage - 1], pooled(teacher[stage - 1], self.side)
            rows = [self._rows(one) for one in on_common_grid(ours, theirs)]
            pairs.append((to_teacher(rows[0]), rows[1]))
        if self.training:
            self.steps.add_(1)
        return pairs

    def _rows(self, stage: Tensor) -> Tensor:
        cells = stage.flatten(2).transpose(1, 2)
        count = cells.shape[1]
        if self.samples and self.samples < count:
            stride = next(n for n in range(round(count * _GOLDEN), count) if math.gcd(n, count) == 1)
            # Evaluation takes the same cells every time, so that its losses can be compared.
            steps = self.steps if self.training else torch.zeros_like(self.steps)
            places = (steps * self.samples + torch.arange(self.samples, device=cells.device)) * stride % count
            cells = cells[:, places]
        return cells.flatten(0, 1)
