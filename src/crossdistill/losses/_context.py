"""What every loss shares: full precision, and sums over all processes."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a loss outside autocast, with its floating-point inputs in one dtype of at least float32.

    Batch statistics and exponentials lose their meaning in 8 or 11 bits of mantissa.
    """

    @functools.wraps(loss)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)

        with _without_autocast(tensors[0].device.type):
            raised = {name: _raised(value, dtype) for name, value in kwargs.items()}
            return loss(*[_raised(value, dtype) for value in args], **raised)  # type: ignore[arg-type]

    return run


def _raised(value: object, dtype: torch.dtype) -> object:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def processes() -> int:
    """Count the processes that share the batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, differentiably; the tensor itself where there is one process.

    The backward pass sums the gradients over processes as well. Together with DDP's mean over
    processes this gives the gradient of the one global loss.
    """
    if processes() > 1:
        from torch.distributed.nn.functional import all_reduce

        summed: Tensor = all_reduce(tensor)
        return summed
    return tensor


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse a pair that is not two equal (B, D) matrices."""
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be two matrices of one shape "
            "(batch, features); map the student to the teacher's width first"
        )
