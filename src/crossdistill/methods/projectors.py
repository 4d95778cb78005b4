"""Training-only maps from the student's features to the teacher's width."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.losses._context import global_sum


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d whose training statistics are those of the batch over all processes.

    torch's SyncBatchNorm does this on CUDA only; here any backend, CPU included.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = global_sum(x.new_full((), len(x)))
        mean = global_sum(x.sum(dim=0)) / count
        variance = global_sum((x - mean).square().sum(dim=0)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        return ((x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(input.dtype)


def linear_map(in_dim: int, out_dim: int) -> nn.Linear:
    """Give a linear map without bias, weights truncated normal with std 0.02."""
    linear = nn.Linear(in_dim, out_dim, bias=False)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    return linear


class Decoupler(nn.Module):
    """RSD's buffer between student and loss (the paper's AAD), so that the student keeps its own strengths.

    (B, student_dim) -> (B, teacher_dim): linear -> batch norm -> GELU -> linear, with hidden width
    `expansion` * student_dim. 1,312,768 parameters for widths 512 -> 768.

    Source: RSD, ICCV 2025, arXiv 2507.21844.
    """

    def __init__(self, student_dim: int, teacher_dim: int, expansion: int = 2) -> None:
        super().__init__()
        self.expand = linear_map(student_dim, expansion * student_dim)
        self.norm = GlobalBatchNorm1d(expansion * student_dim)
        self.reduce = linear_map(expansion * student_dim, teacher_dim)

    @override
    def forward(self, embedding: Tensor) -> Tensor:
        out: Tensor = self.reduce(F.gelu(self.norm(self.expand(embedding))))
        return out
