"""FBT: fuse before transfer (ICCV 2025). A network of both sides' pieces carries the knowledge across."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.backbones.family import is_convolutional
from crossdistill.backbones.tail import Tail
from crossdistill.errors import UserError, unknown
from crossdistill.losses.infonce import info_nce_loss
from crossdistill.losses.ofa import ofa_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.methods.projectors import linear_map
from crossdistill.types import BackboneOutput, BackboneSpec

_FRONTS = ("auto", "student", "teacher")
_FRONT_STAGE = 3


@dataclass(frozen=True)
class FBTOptions:
    """Options of `fbt`. Where abstract and summaries are silent, the choice is ours and said so."""

    front: str = "auto"
    """Whose first three stages begin the fused network: "student", "teacher", or "auto": the teacher where it is a CNN
    and the student is none, else the student."""
    student_weight: float = 1.0
    """Factor of L(teacher, student); >= 0."""
    fusion_weight: float = 1.0
    """Factor of L(teacher, fused); >= 0. Without it the fused network teaches noise (the paper's ablation)."""
    transfer_weight: float = 1.0
    """Factor of L(fused, student); >= 0."""
    info_nce: bool = True
    """Whether InfoNCE on embeddings is part of each L."""
    ofa: bool = True
    """Whether OFA's loss on logits is part of each L."""
    standardise: bool = False
    """Standardise the logits of OFA's loss over the classes before the softmax (arXiv 2403.01427)."""
    eps: float = 1.0
    """epsilon, OFA's modulation exponent; >= 1."""
    temperature: float = 0.07
    """Initial temperature of InfoNCE; it learns, within [0.01, 1] (our bounds)."""
    symmetric: bool = False
    """Whether InfoNCE is taken both ways (the sources do not say; one way: the learner's rows find the teacher's)."""
    width: int = 128
    """Width that embeddings are projected to for InfoNCE; >= 1 (the sources do not say)."""
    detach: bool = True
    """Keep L(fused, student) from changing the fused network: it teaches there (the sources do not say)."""
    swin_block: bool = True
    """Whether a Swin block follows the patch embedding of the projector (L2G)."""

    def __post_init__(self) -> None:
        if self.front not in _FRONTS:
            raise unknown("value of fbt's option 'front'", self.front, _FRONTS)
        if not (self.info_nce or self.ofa):
            raise UserError("fbt: with neither info_nce nor ofa nothing is transferred")
        if not self.eps >= 1:
            raise UserError(f"fbt: eps is {self.eps}; it must be at least 1")
        if not 0.01 <= self.temperature <= 1:
            raise UserError(f"fbt: temperature is {self.temperature}; it must lie between 0.01 and 1")
        if self.width < 1:
            raise UserError(f"fbt: width is {self.width}; it must be at least 1")
        for name in ("student_weight", "fusion_weight", "transfer_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"fbt: {name} is {getattr(self, name)}; it must not be negative")


class LocalToGlobal(nn.Module):
    """L2G: the front's map (B, C, H, W) as a map of the back's channels and grid, mixed by one Swin block.

    The patch embedding is a strided convolution where the front's grid is a multiple of the back's;
    otherwise the map is resized and each cell embedded.
    """

    def __init__(self, channels: int, side: int, back_channels: int, back_side: int, swin_block: bool) -> None:
        super().__init__()
        self.side = back_side
        step = side // back_side if side % back_side == 0 else 1
        self.shrinks = step == 1 and side > back_side
        self.embed = nn.Conv2d(channels, back_channels, step, stride=step)
        self.norm = nn.LayerNorm(back_channels)
        heads = max(h for h in range(1, max(2, back_channels // 32 + 1)) if back_channels % h == 0)
        self.mix: nn.Module = nn.Identity()
        if swin_block:
            self.mix = SwinTransformerBlock(
                back_channels, (back_side, back_side), heads, window_size=_window(back_side)
            )

    @override
    def forward(self, features: Tensor) -> Tensor:
        # Embedding cell by cell and resizing commute: the cheaper order is the one with fewer cells to embed.
        for step in (self._resized, self.embed) if self.shrinks else (self.embed, self._resized):
            features = step(features)
        rows = self.norm(features.permute(0, 2, 3, 1))
        return self.mix(rows).permute(0, 3, 1, 2)

    def _resized(self, features: Tensor) -> Tensor:
        if features.shape[-1] == self.side:
            return features
        return F.interpolate(features, (self.side, self.side), mode="bilinear", align_corners=False)


def _window(side: int) -> int:
    """Choose the Swin block's window, 5 to 8 cells (all of a smaller map), that needs the least padding.

    7 for the grids of 224 px, as in Swin; on 8 cells a window of 7 would attend to three times as many, padded.
    """
    sizes = range(min(5, side), min(8, side) + 1)
    return min(sizes, key=lambda size: (math.ceil(side / size) * size, -size))


class FBT(Method):
    """L(K_t, K_s) + L(K_t, K_f) + L(K_f, K_s), each InfoNCE on embeddings plus OFA's loss on logits.

    The fused network f is the first three stages of one side, L2G, and the last stage and head of
    the other. It shares their weights: the teacher's blocks stay frozen and let gradients through,
    the front's features are those that its own forward has already made. Only L2G, the projections of
    InfoNCE, and (where the back is a transformer with class tokens) these tokens are new.

    Source: arXiv 2410.12342, from its abstract and published summaries.
    """

    Options: ClassVar[type] = FBTOptions
    idea: ClassVar[str] = (
        "Build a third network from the first stages of one side and the last of the other, let the teacher teach it, "
        "and let both teach the student; embeddings by InfoNCE, logits by OFA's loss."
    )
    paper: ClassVar[str] = "FBT, ICCV 2025, arXiv 2410.12342"
    student_stages = True
    one_teacher = True

    def __init__(self, options: FBTOptions, student: BackboneSpec, teacher: BackboneSpec | None) -> None:
        super().__init__(options, student, teacher)
        assert teacher is not None
        self.options = options
        kinds = [kind for kind, wanted in (("nce", options.info_nce), ("ofa", options.ofa)) if wanted]
        for part in ("student", "fusion", "transfer"):
            for kind in kinds:
                self.weights[f"fbt_{part}_{kind}"] = getattr(options, f"{part}_weight")
        self._tail: tuple[Tail, ...] = ()
        self.l2g: nn.Module = nn.Identity()
        self.prefix: nn.Parameter | None = None
        self.project = nn.ModuleDict()
        self.log_temperature = nn.Parameter(torch.tensor([math.log(options.temperature)])) if options.info_nce else None

    @override
    def bind(self, student: Backbone, teacher: Backbone | None) -> None:
        assert teacher is not None
        front = self.options.front
        if front == "auto":
            front = "teacher" if is_convolutional(teacher) and not is_convolutional(student) else "student"
        self.front_is_teacher = front == "teacher"
        self.runs_student, self.runs_teacher = self.front_is_teacher, not self.front_is_teacher
        self.teacher_stages = (_FRONT_STAGE,) if self.front_is_teacher else ()
        ahead, behind = (teacher, student) if self.front_is_teacher else (student, teacher)
        sides = []
        for model in (ahead, behind):
            model.require_stages()
            assert model.spec.stage_strides is not None
            sides.append(max(1, round(model.img_size / model.spec.stage_strides[_FRONT_STAGE - 1])))
        tail = Tail(behind, _FRONT_STAGE)
        self._tail = (tail,)
        channels = [model.spec.channels(_FRONT_STAGE) for model in (ahead, behind)]
        self.l2g = LocalToGlobal(channels[0], sides[0], channels[1], sides[1], self.options.swin_block)
        if tail.prefix_tokens:
            self.prefix = nn.Parameter(torch.zeros(1, tail.prefix_tokens, channels[1]))
            nn.init.trunc_normal_(self.prefix, std=0.02)
        if self.options.info_nce:
            widths = {"student": student, "teacher": teacher, "fused": behind}
            for name, model in widths.items():
                self.project[name] = linear_map(model.spec.embedding_dim, self.options.width)

    @override
    def release_teacher(self) -> None:
        if not self.front_is_teacher:
            self._tail[0].release_front()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FBT":
        for tail in self._tail:
            tail.apply(fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    @property
    def temperature(self) -> Tensor:
        """The temperature that InfoNCE has learned so far."""
        assert self.log_temperature is not None
        return self.log_temperature[0].float().exp().clamp(0.01, 1.0)

    def fused(self, student: BackboneOutput, teacher: BackboneOutput) -> BackboneOutput:
        """Run L2G and the back on the front's stage-3 map, which its own forward has made."""
        front = teacher if self.front_is_teacher else student
        if front.stages is None:
            raise ValueError("fbt needs the stage maps of the side that makes the front")
        handed = self.l2g(front.stages[_FRONT_STAGE - 1])
        prefix = None if self.prefix is None else self.prefix.to(handed.dtype).expand(len(handed), -1, -1)
        return self._tail[0](handed, prefix)

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        assert teacher is not None
        fused = self.fused(student, teacher)
        guide = fused
        if self.options.detach:
            guide = BackboneOutput(fused.logits.detach(), fused.embedding.detach())
        pairs = {
            "student": (("teacher", teacher), ("student", student)),
            "fusion": (("teacher", teacher), ("fused", fused)),
            "transfer": (("fused", guide), ("student", student)),
        }
        terms: dict[str, Tensor] = {}
        for part, ((wise_name, wise), (learner_name, learner)) in pairs.items():
            if self.options.info_nce:
                ours, theirs = self.project[learner_name](learner.embedding), self.project[wise_name](wise.embedding)
                terms[f"fbt_{part}_nce"] = self._nce(ours, theirs)
            if self.options.ofa:
                logits = comparable(learner.logits, wise.logits, self.options.standardise)
                terms[f"fbt_{part}_ofa"] = ofa_loss(*logits, targets, eps=self.options.eps)
        return terms

    def _nce(self, learner: Tensor, wise: Tensor) -> Tensor:
        one_way = info_nce_loss(learner, wise, temperature=self.temperature)
        if not self.options.symmetric:
            return one_way
        return (one_way + info_nce_loss(wise, learner, temperature=self.temperature)) / 2
