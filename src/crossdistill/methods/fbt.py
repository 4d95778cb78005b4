"""FBT: fuse before transfer (ICCV 2025). A network of stages of both models teaches the student as well."""

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.backbones.family import is_convolutional
from crossdistill.backbones.tail import Tail
from crossdistill.config.validation import AtLeastOne, NonNegative, NonNegativeInt, PositiveInt, settings
from crossdistill.errors import UserError
from crossdistill.losses.infonce import info_nce_loss
from crossdistill.losses.ofa import ofa_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.methods.projectors import linear_map
from crossdistill.types import BackboneOutput, BackboneSpec, Needs, Reads

_FRONT_STAGE = 3
_LOG_BOUNDS = (math.log(0.01), 0.0)
"""Bounds of the logarithm of InfoNCE's temperature."""


@settings
class FBTOptions:
    """Options of `fbt`. A choice that the sources do not state is ours, and marked "(not stated)"."""

    front: Literal["auto", "student", "teacher"] = "auto"
    """Whose first three stages begin the fused network: "student", "teacher", or "auto": the teacher's where it is a
    CNN and the student is not, else the student's."""
    student_weight: NonNegative = 1.0
    """Factor of L(teacher, student); >= 0."""
    fusion_weight: NonNegative = 1.0
    """Factor of L(teacher, fused); >= 0. Without it the fused network teaches noise (the paper's ablation)."""
    transfer_weight: NonNegative = 1.0
    """Factor of L(fused, student); >= 0. From a ViT to a small CNN at 32 px the fused network lowers the result: 28.99%
    with it, 30.44 without, 27.10 without a teacher (CIFAR-100, one seed). With `fusion_weight=0` and
    `transfer_weight=0` it is not built."""
    info_nce: bool = True
    """Whether InfoNCE on embeddings is part of each L."""
    ofa: bool = True
    """Whether OFA's loss on logits is part of each L."""
    standardise: bool = False
    """Standardise the logits of OFA's loss over the classes before the softmax (arXiv 2403.01427)."""
    eps: AtLeastOne = 1.0
    """epsilon, OFA's modulation exponent; >= 1."""
    temperature: Annotated[float, Field(strict=True, ge=0.01, le=1)] = 0.07
    """Initial temperature of InfoNCE; it is learned, within [0.01, 1] (our bounds)."""
    symmetric: bool = False
    """Whether InfoNCE is computed in both directions (not stated). One direction: each row of the network that is
    taught is compared with all rows of the one that teaches. From a ViT to a CNN 28.92% in both, 28.99 in one
    (CIFAR-100, one seed)."""
    width: PositiveInt = 128
    """Width that embeddings are projected to for InfoNCE; >= 1 (not stated)."""
    detach: bool = True
    """Stop the gradient of L(fused, student) before the fused network (not stated)."""
    ramp: NonNegativeInt = 0
    """Batches over which the factor of L(fused, student) rises from 0 to its value; 0 starts with it. From a
    ViT to a CNN 29.22% with a third of the batches, 28.99 with 0 (CIFAR-100, one seed)."""
    fused_task_weight: NonNegative = 0.0
    """Factor of the cross entropy of the fused network's logits with the labels; >= 0. No gain with 1: 28.88%."""
    swin_block: bool = True
    """Whether a Swin block follows the patch embedding of the projector (L2G)."""

    def __post_init__(self) -> None:
        if not (self.info_nce or self.ofa):
            raise UserError("fbt: with neither info_nce nor ofa nothing is transferred")
        if not (self.student_weight or self.fuses):
            raise UserError("fbt: with all weights 0 nothing is transferred")

    @property
    def fuses(self) -> bool:
        """Whether there is a fused network."""
        return max(self.fusion_weight, self.transfer_weight, self.fused_task_weight) > 0

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the loss."""
        return ("student", "fusion", "transfer") if self.fuses else ("student",)


class LocalToGlobal(nn.Module):
    """L2G: the front's map (B, C, H, W) with the channels and grid of the back, mixed by one Swin block.

    The patch embedding is a strided convolution where the front's grid is a multiple of the back's; otherwise the map
    is resized and each cell embedded.
    """

    def __init__(
        self, channels: int, grid: tuple[int, int], back_channels: int, back_grid: tuple[int, int], swin_block: bool
    ) -> None:
        super().__init__()
        self.grid = back_grid
        steps = [ours // theirs if ours % theirs == 0 else 0 for ours, theirs in zip(grid, back_grid, strict=True)]
        step = steps[0] if steps[0] == steps[1] > 0 else 1
        self.shrinks = step == 1 and math.prod(grid) > math.prod(back_grid)
        self.embed = nn.Conv2d(channels, back_channels, step, stride=step)
        self.norm = nn.LayerNorm(back_channels)
        heads = max(h for h in range(1, max(2, back_channels // 32 + 1)) if back_channels % h == 0)
        self.mix: nn.Module = nn.Identity()
        if swin_block:
            window = (_window(back_grid[0]), _window(back_grid[1]))
            self.mix = SwinTransformerBlock(back_channels, back_grid, heads, window_size=window)

    @override
    def forward(self, features: Tensor) -> Tensor:
        # Embedding each cell and resizing commute: the order with fewer cells to embed is cheaper.
        for step in (self._resized, self.embed) if self.shrinks else (self.embed, self._resized):
            features = step(features)
        rows = self.norm(features.permute(0, 2, 3, 1))
        return self.mix(rows).permute(0, 3, 1, 2)

    def _resized(self, features: Tensor) -> Tensor:
        if features.shape[2:] == self.grid:
            return features
        return F.interpolate(features, self.grid, mode="bilinear", align_corners=False)


def _window(side: int) -> int:
    """Choose the window of the Swin block, 5 to 8 cells (all of a smaller map), that needs the least padding.

    7 for the grids of 224 px, as in Swin; on 8 cells a window of 7 would attend to three times as many, padded.
    """
    sizes = range(min(5, side), min(8, side) + 1)
    return min(sizes, key=lambda size: (math.ceil(side / size) * size, -size))


class FBT(Method):
    """L(K_t, K_s) + L(K_t, K_f) + L(K_f, K_s), each InfoNCE on embeddings plus OFA's loss on logits.

    The fused network f is the first three stages of one model, L2G, and the last stage and head of the other. It shares
    their weights: the teacher's blocks stay frozen and let gradients through, and the front's features are those that
    its own forward pass has computed. Only L2G, the projections of InfoNCE, and (where the back is a transformer with
    class tokens) these tokens are new.

    Source: arXiv 2410.12342, from its abstract and published summaries.
    """

    Options: ClassVar[type] = FBTOptions
    idea: ClassVar[str] = (
        "Build a third network from the first stages of one model and the last of the other, let the teacher teach it, "
        "and let both teach the student; embeddings by InfoNCE, logits by OFA's loss."
    )
    paper: ClassVar[str] = "FBT, ICCV 2025, arXiv 2410.12342"
    needs = Needs(
        student=Reads(logits=True, embedding=True, stages=(_FRONT_STAGE,)),
        teacher=Reads(logits=True, embedding=True, stages=(_FRONT_STAGE,)),
        labels=True,
    )
    unmeasured = frozenset({"fbt_fusion_nce", "fbt_fusion_ofa", "fbt_fused_task"})

    steps: Tensor | None

    def __init__(self, options: FBTOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        kinds = [kind for kind, used in (("nce", options.info_nce), ("ofa", options.ofa)) if used]
        for part in options.parts:
            for kind in kinds:
                self.weights[f"fbt_{part}_{kind}"] = getattr(options, f"{part}_weight")
        if options.fused_task_weight:
            self.weights["fbt_fused_task"] = options.fused_task_weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.long) if options.ramp else None)
        self.log_temperature = nn.Parameter(torch.tensor([math.log(options.temperature)])) if options.info_nce else None
        projected = {"student": student, "teacher": teacher}
        if options.fuses:
            self.front_is_teacher = _front_is_teacher(options, student, teacher)
            front, back = (teacher, student) if self.front_is_teacher else (student, teacher)
            projected["fused"] = back
            self._fuse(front, back)
        self.project = nn.ModuleDict()
        if options.info_nce:
            for name, model in projected.items():
                self.project[name] = linear_map(model.spec.embedding_dim, options.width)

    def _fuse(self, front: Backbone, back: Backbone) -> None:
        self.tail = Tail(back, _FRONT_STAGE)
        self.borrowed = (self.tail,)
        channels = [model.spec.channels(_FRONT_STAGE) for model in (front, back)]
        grids = [_grid(model.spec) for model in (front, back)]
        self.l2g = LocalToGlobal(channels[0], grids[0], channels[1], grids[1], self.options.swin_block)
        self.prefix: nn.Parameter | None = None
        if self.tail.prefix_tokens:
            self.prefix = nn.Parameter(torch.zeros(1, self.tail.prefix_tokens, channels[1]))
            nn.init.trunc_normal_(self.prefix, std=0.02)

    @classmethod
    @override
    def needs_of(cls, options: FBTOptions, student: Backbone | None = None, teacher: Backbone | None = None) -> Needs:
        labels = options.ofa or options.fused_task_weight > 0
        front = Reads(logits=options.ofa, embedding=options.info_nce, stages=(_FRONT_STAGE,) if options.fuses else ())
        # The cross entropy of the fused network reads the classifier of the back.
        back = replace(front, stages=(), logits=labels)
        if student is None or teacher is None:
            return Needs(student=front | back, teacher=front | back, labels=labels)
        if _front_is_teacher(options, student, teacher):
            return Needs(student=back, teacher=front, labels=labels)
        return Needs(student=front, teacher=back, labels=labels)

    @property
    def temperature(self) -> Tensor:
        """The temperature of InfoNCE that has been learned so far."""
        assert self.log_temperature is not None
        bounded: Tensor = _Bounded.apply(self.log_temperature[0].float())  # type: ignore[no-untyped-call]
        return bounded.exp()

    def fused(self, student: BackboneOutput, teacher: BackboneOutput) -> BackboneOutput:
        """Run L2G and the back on the front's stage-3 map."""
        front = teacher if self.front_is_teacher else student
        mapped = self.l2g(front.require_stages()[_FRONT_STAGE - 1])
        prefix = None if self.prefix is None else self.prefix.to(mapped.dtype).expand(len(mapped), -1, -1)
        return self.tail(mapped, prefix)

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        pairs = {"student": (("teacher", teacher), ("student", student))}
        terms: dict[str, Tensor] = {}
        if self.options.fuses:
            fused = self.fused(student, teacher)
            leading_fused = fused.map(Tensor.detach) if self.options.detach else fused
            pairs["fusion"] = (("teacher", teacher), ("fused", fused))
            pairs["transfer"] = (("fused", leading_fused), ("student", student))
        for part, ((leading_name, leading), (trailing_name, trailing)) in pairs.items():
            if self.options.info_nce:
                ours, theirs = (
                    self.project[trailing_name](trailing.embedding),
                    self.project[leading_name](leading.embedding),
                )
                terms[f"fbt_{part}_nce"] = self._nce(ours, theirs)
            if self.options.ofa:
                logits = comparable(trailing.require_logits(), leading.require_logits(), self.options.standardise)
                terms[f"fbt_{part}_ofa"] = ofa_loss(*logits, targets, eps=self.options.eps)
        if self.options.fused_task_weight:
            terms["fbt_fused_task"] = F.cross_entropy(fused.require_logits().float(), targets)
        return self._ramped(terms)

    def _ramped(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scale the terms of L(fused, student) down in the first batches of training."""
        if self.steps is None or not self.training:
            return terms
        scale = (self.steps / self.options.ramp).clamp(max=1)
        self.steps += 1
        return {name: term * scale if name.startswith("fbt_transfer") else term for name, term in terms.items()}

    def _nce(self, trailing: Tensor, leading: Tensor) -> Tensor:
        one_way = info_nce_loss(trailing, leading, temperature=self.temperature)
        if not self.options.symmetric:
            return one_way
        return (one_way + info_nce_loss(leading, trailing, temperature=self.temperature)) / 2


class _Bounded(torch.autograd.Function):
    """Clamp a value to `_LOG_BOUNDS`; outside of them, keep the gradient that leads back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clamp(*_LOG_BOUNDS)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (value,), (gradient,) = ctx.saved_tensors, gradients
        low, high = _LOG_BOUNDS
        outward = ((value < low) & (gradient > 0)) | ((value > high) & (gradient < 0))
        return torch.where(outward, 0.0, gradient)


def _front_is_teacher(options: FBTOptions, student: Backbone, teacher: Backbone) -> bool:
    if options.front != "auto":
        return options.front == "teacher"
    return is_convolutional(teacher) and not is_convolutional(student)


def _grid(spec: BackboneSpec) -> tuple[int, int]:
    assert spec.stage_grids is not None
    return spec.stage_grids[_FRONT_STAGE - 1]
