"""Training-only maps from the student's features to the teacher's width."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones.stages import STAGES
from crossdistill.distributed import GlobalBatchNorm1d, GlobalBatchNorm2d
from crossdistill.types import BackboneSpec


def _rising(stages: tuple[int, ...]) -> tuple[int, ...]:
    if not stages or list(stages) != sorted(set(stages)):
        raise PydanticCustomError("rising", "rising numbers from 1 to {last}, e.g. [2, 4]", {"last": STAGES})
    return stages


Stages = Annotated[tuple[Literal[1, 2, 3, 4], ...], AfterValidator(_rising)]
"""Type of an option: some of the stages, 1 to 4, from shallow to deep."""


LINEAR_STD = 0.02
"""Standard deviation of the initial weights of linear layers, truncated normal."""


def linear_map(in_dim: int, out_dim: int) -> nn.Linear:
    """Make a linear map without bias, its weights truncated normal with std 0.02."""
    linear = nn.Linear(in_dim, out_dim, bias=False)
    nn.init.trunc_normal_(linear.weight, std=LINEAR_STD)
    return linear


def init_published(module: nn.Module) -> None:
    """Set initial values as in OFA's and HCD's published code; for `nn.Module.apply`.

    Convolutions: Kaiming normal over the outputs, for ReLU. Linear layers: truncated normal, std 0.02. Biases: zero.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=LINEAR_STD)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class Decoupler(nn.Module):
    """RSD's decoupler between student and loss (AAD in the paper); it lets the student keep features of its own.

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


class StageProjector(nn.Sequential):
    """A stage map (B, channels, H, W) of the student as one vector (B, width); used by OFA and HCD.

    `steps` stride-2 separable blocks (depthwise 3x3 of stride 2, 1x1, norm, ReLU, depthwise 3x3, 1x1, norm, ReLU), each
    doubling the channels and the last ending at `width`, or a 1x1 convolution where there are none; then the mean over
    the map. Stage i of 4 has 4 - i steps. Initial values are those of `init_published`.

    Source: HCD, AAAI 2026, arXiv 2511.10942; OFA-KD, NeurIPS 2023, arXiv 2310.19444.
    """

    def __init__(self, channels: int, width: int, steps: int) -> None:
        layers: list[nn.Module] = [] if steps else [nn.Conv2d(channels, width, 1)]
        for step in range(steps):
            out = width if step == steps - 1 else 2 * channels
            layers.append(_separable_block(channels, out))
            channels = out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.apply(init_published)

    @override
    def forward(self, input: Tensor) -> Tensor:
        # Depthwise convolutions of small maps are several times as fast in this layout.
        out: Tensor = super().forward(input.contiguous(memory_format=torch.channels_last))  # type: ignore[no-untyped-call]
        return out


def _separable_block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        GlobalBatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, out, 1, bias=False),
        GlobalBatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


class StageProjectors(nn.ModuleList):
    """One `StageProjector` for each chosen stage (numbers 1 to 4) of a student, all of one width."""

    def __init__(self, student: BackboneSpec, stages: Sequence[int], width: int) -> None:
        super().__init__(StageProjector(student.channels(i), width, STAGES - i) for i in stages)
        self.stages = tuple(stages)

    @override
    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        return [projector(maps[i - 1]) for projector, i in zip(self, self.stages, strict=True)]


class OFAExits(nn.Module):
    """OFA's exits: stage maps to logits (B, K) each, through a `StageProjector` and a linear classifier.

    Initial values are those of `init_published`.
    """

    def __init__(self, student: BackboneSpec, teacher: BackboneSpec, stages: Sequence[int]) -> None:
        super().__init__()
        width = max(student.embedding_dim, teacher.embedding_dim)
        self.projectors = StageProjectors(student, stages, width)
        self.classifiers = nn.ModuleList(nn.Linear(width, student.num_classes) for _ in stages)
        self.classifiers.apply(init_published)

    @override
    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        vectors = self.projectors(maps)
        return [classifier(vector) for classifier, vector in zip(self.classifiers, vectors, strict=True)]
