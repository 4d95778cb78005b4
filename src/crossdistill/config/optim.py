"""Settings of optimiser, schedule and task loss."""

import math
from typing import Annotated, Literal

from pydantic import AfterValidator

from crossdistill.config.validation import (
    FractionBelowOne,
    NonNegative,
    OptionalFraction,
    OptionalPositive,
    Positive,
    number_or,
    settings,
)
from crossdistill.errors import UserError


def _positive(value: float | str | None) -> float | str | None:
    if isinstance(value, float) and not (value > 0 and math.isfinite(value)):
        raise UserError(f"balance is {value}; it must be greater than 0, 'auto' or null")
    return value


_Balance = Annotated[float | Literal["auto"] | None, number_or("auto"), AfterValidator(_positive)]


@settings
class OptimConfig:
    """Optimiser and schedule, by timm's names."""

    name: str = "adamw"
    lr: Positive = 1e-3
    """Peak learning rate for the whole batch."""
    weight_decay: NonNegative = 0.05
    momentum: NonNegative = 0.9
    """Used by the optimisers that have it."""
    schedule: Literal["cosine", "tanh", "wsd", "step", "constant", "none"] = "cosine"
    decay_epochs: Positive = 30.0
    """Epochs after which the schedule "step" divides the learning rate by 10, each time; unused by the others."""
    warmup_epochs: NonNegative = 5.0
    """Epochs of linear warm-up; at most a tenth of the run is used."""
    warmup_lr: NonNegative = 1e-6
    """Learning rate at the start of the warm-up."""
    min_lr: NonNegative = 1e-6
    """Learning rate at the end of the schedule; unused by "step" and "constant"."""
    clip_grad: OptionalPositive = None
    """Largest gradient norm; null does not clip."""
    ema: OptionalFraction = None
    """Decay of an exponential moving average of the student, which is then validated and kept; null keeps none."""
    label_smoothing: FractionBelowOne = 0.0
    """Smoothing of the labels in the task loss."""
    balance: _Balance = "auto"
    """Size of each method's gradient relative to the task's, on the student's embedding and logits: the factor of the
    method is found from the gradients while training, and weights within a method keep their proportions. "auto" does
    so for the methods that have a default for it; null uses all weights as they are."""
    task_weight: NonNegative = 1.0
    """Factor of the task loss (cross entropy)."""
