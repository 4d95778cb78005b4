"""The teacher: a guest that is looked at and never changed."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.backbones import Backbone
from crossdistill.errors import UserError
from crossdistill.types import BackboneOutput, BackboneSpec


class Teacher(nn.Module):
    """A frozen backbone that accepts the student's images.

    Its parameters require no gradient and it stays in eval mode whatever calls `train`. It turns
    images normalised for the student into its own normalisation and input size (bilinear,
    antialiased). Outputs are made under `no_grad`, not `inference_mode`: they may enter the graph
    of a method's projectors.
    """

    def __init__(self, backbone: Backbone, student: BackboneSpec) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.spec = backbone.spec
        self.scale: Tensor
        self.shift: Tensor
        scale, shift = renormalisation(student.mean, student.std, backbone.spec.mean, backbone.spec.std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self._same_normalisation = student.mean == backbone.spec.mean and student.std == backbone.spec.std
        self.eval()

    @property
    def members(self) -> "tuple[Teacher, ...]":
        """The one teacher."""
        return (self,)

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images normalised for the student into the teacher's normalisation and size."""
        if not self._same_normalisation:
            images = images * self.scale + self.shift
        size = (self.backbone.img_size, self.backbone.img_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return images

    @torch.no_grad()
    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Look at images (B, C, H, W) normalised for the student."""
        if self.backbone.training:  # whoever built it may still hold it
            self.backbone.eval()
        output: BackboneOutput = self.backbone(self.prepare(images), stages=stages)
        return output


class TeacherGroup(nn.Module):
    """Several teachers as one: their embeddings side by side, their predictions mixed.

    The mixture's logits are log sum_k w_k softmax(p_k). `weights` are numbers (scaled to sum 1), None for
    equal shares, or "confidence": each image trusts each teacher by its largest probability. There
    are no common stages.
    """

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float] | str | None = None) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
        self.by_confidence = weights == "confidence"
        if isinstance(weights, str) and not self.by_confidence:
            raise UserError(f"teacher_weights is {weights!r}; it must be 'confidence', or a number for each teacher")
        shares = [1.0] * len(teachers) if weights is None or isinstance(weights, str) else list(weights)
        if len(shares) != len(teachers) or min(shares) < 0 or sum(shares) <= 0:
            raise UserError(f"teacher_weights {shares} do not fit {len(teachers)} teachers: one number >= 0 for each")
        self.log_shares: Tensor
        self.register_buffer("log_shares", (torch.tensor(shares) / sum(shares)).log(), persistent=False)
        first = teachers[0].spec
        self.spec = replace(
            first,
            name=" + ".join(teacher.spec.name for teacher in teachers),
            embedding_dim=sum(teacher.spec.embedding_dim for teacher in teachers),
            stage_channels=None,
            stage_strides=None,
        )

    def train(self, mode: bool = True) -> "TeacherGroup":
        """Stay in eval mode."""
        return super().train(False)

    @property
    def members(self) -> tuple[Teacher, ...]:
        """The teachers."""
        return tuple(teacher for teacher in self.teachers if isinstance(teacher, Teacher))

    @torch.no_grad()
    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Look at images (B, C, H, W) normalised for the student."""
        if stages:
            raise UserError("several teachers have no common stages; this method takes one teacher")
        outputs = [teacher(images) for teacher in self.teachers]
        logs = torch.stack([output.logits.float().log_softmax(dim=1) for output in outputs])
        shares = logs.amax(dim=2).log_softmax(dim=0) if self.by_confidence else self.log_shares.unsqueeze(1)
        mixed = torch.logsumexp(logs + shares.unsqueeze(2), dim=0)
        return BackboneOutput(mixed, torch.cat([output.embedding for output in outputs], dim=1))


def make_teacher(
    backbones: Sequence[Backbone], student: BackboneSpec, weights: Sequence[float] | str | None = None
) -> Teacher | TeacherGroup | None:
    """Make a teacher of a student of one backbone, or a group of several; None of none."""
    teachers = [Teacher(backbone, student) for backbone in backbones]
    if len(teachers) > 1:
        return TeacherGroup(teachers, weights)
    return teachers[0] if teachers else None


def renormalisation(
    mean: Sequence[float], std: Sequence[float], new_mean: Sequence[float], new_std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Give scale and shift (1, C, 1, 1) that turn images of one normalisation into another's."""
    # new = ((x * std + mean) - new_mean) / new_std, as one multiply and one add per channel.
    m, s, new_m, new_s = (
        torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std, new_mean, new_std)
    )
    return (s / new_s).float(), ((m - new_m) / new_s).float()
