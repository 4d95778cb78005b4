"""The teacher: frozen, in eval mode, with its own normalisation and input size."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.backbones import Backbone
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize, largest, sides_of
from crossdistill.types import BackboneOutput, BackboneSpec

TeacherWeights = Sequence[float] | Literal["confidence"] | None


class Teacher(nn.Module):
    """A frozen backbone that accepts the student's images.

    Its parameters require no gradient and it stays in eval mode whatever calls `train`. Images normalised for the
    student are converted to its own normalisation and input size (bilinear, antialiased). Its weights may be of a
    narrower type than the images (`backbone.half()`); outputs have the images' type then. Outputs are computed under
    `no_grad`, not `inference_mode`, so that they can enter the graph of a method's projectors.
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
        """The teachers that this one consists of: itself, or those of an ensemble."""
        return self.backbone.teachers if isinstance(self.backbone, Ensemble) else (self,)

    @property
    def img_size(self) -> ImageSize:
        """The size of its input; of several teachers, the largest height and width."""
        return largest([member.backbone.img_size for member in self.members])

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    def stay_frozen(self) -> None:
        """Return every part of the network to eval mode; the caller may hold it and call train() on it."""
        if torch.compiler.is_compiling():  # a graph has the modes of when it was made
            return
        if any(module.training for module in self.backbone.modules()):
            self.backbone.eval()

    def prepare(self, images: Tensor) -> Tensor:
        """Convert images normalised for the student to the teacher's normalisation and size."""
        if not self._same_normalisation:
            images = images * self.scale + self.shift
        size = sides_of(self.backbone.img_size)
        if isinstance(self.backbone, Ensemble):
            return images  # each of its teachers converts them
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return images

    @torch.no_grad()
    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Run images (B, C, H, W) normalised for the student."""
        self.stay_frozen()
        prepared = self.prepare(images)
        dtype = self._narrow_dtype
        if dtype is None or dtype == images.dtype:
            output: BackboneOutput = self.backbone(prepared, stages=stages)
            return output
        output = self.backbone(prepared.to(dtype), stages=stages)
        return output.map(lambda value: value.to(images.dtype))

    @property
    def _narrow_dtype(self) -> torch.dtype | None:
        """The type of half-precision weights; None for others, and for an ensemble, whose members have their own."""
        if isinstance(self.backbone, Ensemble):
            return None
        dtype = next((one.dtype for one in self.backbone.parameters() if one.is_floating_point()), None)
        return dtype if dtype in (torch.float16, torch.bfloat16) else None


class Ensemble(Backbone):
    """Several teachers as one backbone: embeddings concatenated, predictions mixed.

    It accepts the student's images; each teacher converts them. The mixture's logits are log sum_k w_k softmax(p_k),
    or None unless all teachers have the same classes. `weights` are numbers (scaled to sum 1), None for equal weights,
    or "confidence": for each image, each teacher is weighted by its largest probability. There are no common stages.
    Raises UserError for weights that do not match the teachers.
    """

    def __init__(self, backbones: Sequence[Backbone], student: Backbone, weights: TeacherWeights = None) -> None:
        super().__init__()
        self.model = nn.ModuleList(Teacher(backbone, student.spec) for backbone in backbones)
        self.by_confidence = isinstance(weights, str) and weights == "confidence"
        if isinstance(weights, str) and not self.by_confidence:
            raise UserError(f"teacher_weights is {weights!r}; it must be 'confidence', or a number for each teacher")
        given = None if isinstance(weights, str) else weights
        numbers = [1.0] * len(backbones) if given is None else [float(one) for one in given]
        if len(numbers) != len(backbones):
            raise UserError(f"teacher_weights {numbers} must have one number for each of {len(backbones)} teachers")
        if not (all(math.isfinite(number) and number >= 0 for number in numbers) and sum(numbers) > 0):
            raise UserError(f"teacher_weights {numbers} must be numbers >= 0, not all 0")
        self.log_weights: Tensor
        self.register_buffer("log_weights", (torch.tensor(numbers) / sum(numbers)).log(), persistent=False)
        specs = [backbone.spec for backbone in backbones]
        classes = {spec.num_classes for spec in specs}
        self.img_size = student.img_size
        self.stage_problem = "several teachers have no common stages"
        self.spec = replace(
            specs[0],
            name=" + ".join(spec.name for spec in specs),
            num_classes=classes.pop() if len(classes) == 1 else 0,
            embedding_dim=sum(spec.embedding_dim for spec in specs),
            stage_channels=None,
            stage_strides=None,
            stage_grids=None,
            mean=student.spec.mean,
            std=student.spec.std,
        )

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """The teachers."""
        return tuple(teacher for teacher in self.model.children() if isinstance(teacher, Teacher))

    @property
    def networks(self) -> tuple[Backbone, ...]:
        """The networks of the teachers."""
        return tuple(teacher.backbone for teacher in self.teachers)

    @property
    def mixing_weights(self) -> list[float] | Literal["confidence"]:
        """The weights of the teachers, which sum to 1, or "confidence"."""
        return "confidence" if self.by_confidence else [round(v, 6) for v in self.log_weights.exp().tolist()]

    def classes_in_words(self) -> str:
        """Return how many classes each teacher has, for an error message."""
        if self.spec.num_classes:
            return super().classes_in_words()
        return " and ".join(teacher.backbone.classes_in_words() for teacher in self.teachers)

    def require_stages(self) -> None:
        """Raise UserError: several teachers have no common stages."""
        raise UserError("this method reads the teacher's stages, and several teachers have none in common; give one")

    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Run images (B, C, H, W) normalised for the student."""
        if stages:
            self.require_stages()
        outputs = [teacher(images) for teacher in self.teachers]
        embedding = torch.cat([output.embedding for output in outputs], dim=1)
        if self.spec.num_classes == 0:
            return BackboneOutput(None, embedding)
        logs = torch.stack([output.require_logits().float().log_softmax(dim=1) for output in outputs])
        weights = logs.amax(dim=2).log_softmax(dim=0) if self.by_confidence else self.log_weights.unsqueeze(1)
        return BackboneOutput(torch.logsumexp(logs + weights.unsqueeze(2), dim=0), embedding)


def make_teacher(backbones: Sequence[Backbone], student: Backbone, weights: TeacherWeights = None) -> Teacher | None:
    """Make the teacher of a student from one backbone or several; None without a backbone. Raises UserError."""
    if weights is not None and len(backbones) < 2:
        raise UserError(f"teacher_weights {weights!r} mix several teachers, but {len(backbones)} is given")
    if not backbones:
        return None
    backbone = backbones[0] if len(backbones) == 1 else Ensemble(backbones, student, weights)
    return Teacher(backbone, student.spec)


def renormalisation(
    mean: Sequence[float], std: Sequence[float], new_mean: Sequence[float], new_std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return scale and shift (1, C, 1, 1) that convert images from one normalisation to another."""
    # new = ((x * std + mean) - new_mean) / new_std, as one multiply and one add for each channel.
    m, s, new_m, new_s = (
        torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std, new_mean, new_std)
    )
    return (s / new_s).float(), ((m - new_m) / new_s).float()
