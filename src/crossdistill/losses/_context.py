"""What several losses share: full precision, checks of their input, and the class of a soft label."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec

import torch
from jaxtyping import Shaped
from torch import Tensor

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a loss outside autocast, with its floating-point inputs cast to one dtype of at least float32.

    Batch statistics and exponentials are wrong with the 8 or 11 bits of a half-precision mantissa.
    """

    @functools.wraps(loss)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point()]
        dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)

        with _without_autocast(tensors[0].device.type):
            cast = {name: _cast(value, dtype) for name, value in kwargs.items()}
            return loss(*[_cast(value, dtype) for value in args], **cast)  # type: ignore[arg-type]

    return run


def _cast(value: object, dtype: torch.dtype) -> object:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both are (B, D) matrices of one shape."""
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be two matrices of one shape "
            "(batch, features); map the student to the teacher's width first"
        )


def check_batch(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless both are matrices with the same number of rows."""
    if student.ndim != 2 or teacher.ndim != 2 or len(student) != len(teacher):
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be two matrices (batch, features) "
            "of the same images"
        )


def check_temperature(temperature: float) -> None:
    """Raise ValueError unless a temperature is positive."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")


def hard_labels(target: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, " batch"]:
    """Return class numbers (B,): the targets themselves, or the most likely class of probabilities (B, K).

    Under mixup or CutMix that is the class of the larger share.
    """
    return target if target.ndim == 1 else target.argmax(dim=1)
