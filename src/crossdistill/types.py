"""The values that the parts of the package pass to each other.

Letters of shapes, here and everywhere: B batch, C channels, H height, W width, D embedding width, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from crossdistill.errors import UserError

NO_LABEL = -1
"""The target of an image without a label."""


class BackboneOutput(NamedTuple):
    """What one forward pass of a backbone returns.

    `logits` (B, K), or None where the network has no classifier; `embedding` (B, D), the pooled features before the
    classifier; `stages`, four maps (B, C_i, H_i, W_i) from shallow to deep, or None where they were not asked for.
    """

    logits: Tensor | None
    embedding: Tensor
    stages: tuple[Tensor, ...] | None = None

    def require_logits(self) -> Tensor:
        """Return the logits (B, K). Raises ValueError where there are none."""
        if self.logits is None:
            raise ValueError("this output has no logits: the network has no classifier, or they were not stored")
        return self.logits

    def require_stages(self) -> tuple[Tensor, ...]:
        """Return the four stage maps. Raises ValueError where they were not computed."""
        if self.stages is None:
            raise ValueError("this output has no stage maps; call the backbone with stages=True")
        return self.stages

    def map(self, function: Callable[[Tensor], Tensor]) -> "BackboneOutput":
        """Apply a function to every tensor."""
        return BackboneOutput(
            None if self.logits is None else function(self.logits),
            function(self.embedding),
            None if self.stages is None else tuple(function(stage) for stage in self.stages),
        )


class Batch(NamedTuple):
    """What a loader yields and a training step receives.

    `images` (B, C, H, W), normalised for the student; `targets` (B,) class numbers (`NO_LABEL` for an image without a
    label) or (B, K) probabilities; `index` (B,), the number of each image in its split; `teacher`, the teacher's stored
    output for exactly these views, or None where the teacher is run; `teacher_images` (B, C, H', W'), the same views at
    the teacher's size, normalised for the student, or None where the teacher sees `images`.
    """

    images: Tensor
    targets: Tensor
    index: Tensor  # type: ignore[assignment]  # tuple has a method of this name
    teacher: BackboneOutput | None = None
    teacher_images: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Reads:
    """Which parts of a backbone's output are read."""

    logits: bool = False
    embedding: bool = False
    stages: tuple[int, ...] = ()
    """Numbers of the stage maps, from 1 (shallow) to 4 (deep)."""
    side: int | None = None
    """Cells along a side that the stage maps are pooled to where they are larger; None reads all cells."""

    def __bool__(self) -> bool:
        return self.logits or self.embedding or bool(self.stages)

    def __or__(self, other: "Reads") -> "Reads":
        stages = tuple(sorted({*self.stages, *other.stages}))
        sides = {reads.side for reads in (self, other) if reads.stages}
        # Maps that are pooled twice differ from maps that are pooled once.
        side = sides.pop() if len(sides) == 1 else None
        return Reads(self.logits or other.logits, self.embedding or other.embedding, stages, side)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a method reads of the student's and of the teacher's output."""

    student: Reads = Reads()
    teacher: Reads = Reads()
    index: bool = False
    """Whether the number of each image in the training set is read."""
    labels: bool = False
    """Whether the labels of the images are read."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.student | other.student,
            self.teacher | other.teacher,
            self.index or other.index,
            self.labels or other.labels,
        )


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """Facts about a backbone, read from the model and never from a table of names."""

    name: str
    num_classes: int
    """0 where the network has no classifier."""
    embedding_dim: int
    stage_channels: tuple[int, ...] | None
    """Channels of the four stages; None where the stages cannot be read."""
    stage_strides: tuple[int, ...] | None
    """Input rows for each row of a stage, rounded; None where the stages cannot be read."""
    stage_grids: tuple[tuple[int, int], ...] | None
    """Rows and columns of the four stages for images of the backbone's size; None where they cannot be read."""
    in_chans: int
    mean: tuple[float, ...]
    """Mean of each channel that the input is normalised with, for pixels in [0, 1]."""
    std: tuple[float, ...]

    def channels(self, stage: int) -> int:
        """Return the channels of stage 1 to 4. Raises UserError where the stages cannot be read."""
        if self.stage_channels is None:
            raise UserError(f"stages of {self.name!r} cannot be read; name four of its modules (stages=[...])")
        return self.stage_channels[stage - 1]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One training step: `loss` scalar to minimise, the student's `logits` (B, K), `terms` unweighted scalars by name.

    `logits` is None for a student without a classifier.
    """

    loss: Tensor
    logits: Tensor | None
    terms: dict[str, Tensor]
