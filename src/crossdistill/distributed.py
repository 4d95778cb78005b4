"""Sums, rows and batch norms over all processes that work on one batch."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override


def processes() -> int:
    """Count the processes that work on one batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, differentiably; in one process return it as it is.

    The backward pass sums the gradients over processes as well. Together with DDP's mean over processes the
    result is the gradient of the loss of the joined batch.
    """
    if processes() > 1:
        from torch.distributed.nn.functional import all_reduce

        summed: Tensor = all_reduce(tensor)
        return summed
    return tensor


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Concatenate the rows of all processes, differentiably, and return the position of this process's first row.

    The backward pass returns to every process the gradients that the others computed for its rows. All processes must
    have the same number of rows.
    """
    if processes() > 1:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(list(all_gather(rows.contiguous()))), dist.get_rank() * len(rows)
    return rows, 0


def gather_detached(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, of any dtype and without gradients."""
    if processes() == 1:
        return rows
    everyone = [torch.empty_like(rows) for _ in range(processes())]
    dist.all_gather(everyone, rows.contiguous())
    return torch.cat(everyone)


def mean_detached(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, without gradients."""
    if processes() == 1:
        return tensor
    mean = tensor.detach().clone()
    dist.all_reduce(mean)
    return mean / processes()


class _GlobalStatistics(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose training statistics are those of the batch over all processes.

    torch's SyncBatchNorm does this on CUDA only; this works on any backend, the CPU included.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and processes() > 1):
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = global_sum(x.new_full((), x.numel() / x.shape[1]))
        mean = global_sum(x.sum(dim=dims)) / count
        centred = x - mean.view(shape)
        variance = global_sum(centred.square().sum(dim=dims)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


class GlobalBatchNorm1d(_GlobalStatistics, nn.BatchNorm1d):
    """BatchNorm1d with the statistics of all processes."""


class GlobalBatchNorm2d(_GlobalStatistics, nn.BatchNorm2d):
    """BatchNorm2d with the statistics of all processes."""
