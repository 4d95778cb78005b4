"""Settings of optimiser, schedule and task loss."""

from typing import Literal

from crossdistill.config.validation import (
    FractionBelowOne,
    NonNegative,
    OptionalFraction,
    OptionalPositive,
    Positive,
    settings,
)


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
    task_weight: NonNegative = 1.0
    """Factor of the task loss (cross entropy)."""
