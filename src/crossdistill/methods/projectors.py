"""Training-only maps from the student's features to the teacher's width."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones.stages import STAGES
from crossdistill.errors import UserError
from crossdistill.losses._context import global_sum, processes
from crossdistill.types import BackboneSpec


class _GlobalStatistics(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose training statistics are those of the batch over all processes.

    torch's SyncBatchNorm does this on CUDA only; here any backend, CPU included.
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


class StageProjector(nn.Sequential):
    """A student's stage map (B, channels, H, W) as one vector (B, width); shared by OFA and HCD.

    `steps` stride-2 separable blocks (depthwise 3x3 of stride 2, 1x1, norm, ReLU, depthwise 3x3, 1x1,
    norm, ReLU), each doubling the channels and the last ending at `width`, or a 1x1 convolution
    where there are none; then the mean over the map. Stage i of 4 takes 4 - i steps.

    Source: HCD, AAAI 2026, arXiv 2511.10942; OFA-KD, NeurIPS 2023, arXiv 2310.19444.
    """

    def __init__(self, channels: int, width: int, steps: int) -> None:
        layers: list[nn.Module] = [] if steps else [nn.Conv2d(channels, width, 1)]
        for step in range(steps):
            out = width if step == steps - 1 else 2 * channels
            layers.append(_separable_block(channels, out))
            channels = out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    @override
    def forward(self, input: Tensor) -> Tensor:
        # Depthwise convolutions of small maps are several times faster in this layout.
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
    """One `StageProjector` for each chosen stage (numbers 1 to 4) of a student, all to one width."""

    def __init__(self, student: BackboneSpec, stages: Sequence[int], width: int) -> None:
        super().__init__(StageProjector(student.channels(i), width, STAGES - i) for i in stages)
        self.stages = tuple(stages)

    @override
    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        return [projector(maps[i - 1]) for projector, i in zip(self, self.stages, strict=True)]


class OFAExits(nn.Module):
    """OFA's exits: stage maps to logits (B, K) each, through a `StageProjector` and a linear classifier."""

    def __init__(self, student: BackboneSpec, teacher: BackboneSpec, stages: Sequence[int]) -> None:
        super().__init__()
        width = max(student.embedding_dim, teacher.embedding_dim)
        self.projectors = StageProjectors(student, stages, width)
        self.classifiers = nn.ModuleList(nn.Linear(width, student.num_classes) for _ in stages)

    @override
    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        vectors = self.projectors(maps)
        return [classifier(vector) for classifier, vector in zip(self.classifiers, vectors, strict=True)]


def check_stages(method: str, stages: object) -> None:
    """Refuse anything but rising stage numbers from 1 to 4. Raises UserError."""
    numbers = list(stages) if isinstance(stages, list | tuple) else []
    if not numbers or numbers != sorted(set(numbers)) or not set(numbers) <= set(range(1, STAGES + 1)):
        raise UserError(
            f"{method}: stages is {stages!r}; it must be rising numbers from 1 to {STAGES}, as [1, 2, 3, 4]"
        )
