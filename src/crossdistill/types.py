"""What flows between the parts.

Letters of shapes, here and everywhere: B batch, C channels, H height, W width, D embedding width,
K classes.
"""

from dataclasses import dataclass

from torch import Tensor

from crossdistill.errors import UserError


@dataclass(frozen=True, slots=True)
class BackboneOutput:
    """What one forward of a backbone gives.

    `logits` (B, K); `embedding` (B, D), the pooled penultimate features; `stages`, four maps
    (B, C_i, H_i, W_i) from shallow to deep, or None where they were not asked for.
    """

    logits: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """What a backbone says of itself; read from the model, never from a table of names."""

    name: str
    num_classes: int
    embedding_dim: int
    stage_channels: tuple[int, ...] | None
    """Channels of the four stages; None where the stages cannot be read."""
    stage_strides: tuple[int, ...] | None
    """Input pixels per stage cell."""
    in_chans: int
    mean: tuple[float, ...]
    """Per-channel mean the model expects its input to be normalised with, of pixels in [0, 1]."""
    std: tuple[float, ...]

    def channels(self, stage: int) -> int:
        """Give the channels of stage 1 to 4. Raises UserError where the stages cannot be read."""
        if self.stage_channels is None:
            raise UserError(f"stages of {self.name!r} cannot be read; name four of its modules (stages=[...])")
        return self.stage_channels[stage - 1]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One training step: `loss` scalar to minimise, student `logits` (B, K), `terms` unweighted scalars."""

    loss: Tensor
    logits: Tensor
    terms: dict[str, Tensor]
