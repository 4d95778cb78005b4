"""RSD: redundancy suppression distillation (ICCV 2025), the variants of its paper, and a spatial term of ours."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.config.validation import NonNegative, NonNegativeInt, PositiveInt, number_or, settings
from crossdistill.errors import UserError
from crossdistill.losses.rsd import rsd_loss
from crossdistill.methods.base import Method
from crossdistill.methods.cells import Cells
from crossdistill.methods.projectors import Decoupler, OFAExits, Stages, linear_map
from crossdistill.types import BackboneOutput, Needs, Reads

_KAPPA = 0.01
"""The paper's kappa, for all widths."""


def _not_negative(value: float | str) -> float | str:
    if isinstance(value, float) and not (value >= 0 and math.isfinite(value)):
        raise UserError(f"kappa is {value}; it must be greater than or equal to 0, or 'auto'")
    return value


_Kappa = Annotated[float | Literal["auto"], number_or("auto"), AfterValidator(_not_negative)]


@settings
class RSDOptions:
    """Options of `rsd`. Defaults are the paper's for CIFAR-100, but kappa is ours and optim.balance replaces lambda."""

    kappa: _Kappa = "auto"
    """kappa, weight of the decorrelation of different dimensions; >= 0. 0 keeps only the invariance term. "auto" is
    1 / D for a teacher of D dimensions and at most the paper's 0.01: D^2 pairs of dimensions would outweigh the D terms
    of the invariance, and in a batch of few images they are mostly noise (docs/results.md)."""
    weight: NonNegative = 0.1
    """lambda, factor of the RSD term beside the task loss; >= 0. The term grows with the teacher's width, so
    optim.balance finds the factor by default, and this value is unused."""
    on: Literal["embedding", "logits", "stages"] = "embedding"
    """What is correlated: "embedding" (pooled, before the classifier), "logits", or "stages": OFA's exits from the
    student's stages and the student's own logits, each with the teacher's logits, in place of OFA's losses."""
    own_logits: bool = True
    """For on="stages": whether the sum has the term on the student's own logits (published), without a decoupler."""
    decoupler: Literal["aad", "linear", "none"] = "aad"
    """The map on the student's side: "aad" (the paper's decoupler), "linear" (one linear map) or "none" (for equal
    widths). The paper does not state the decoupler for logits; here it is the same as for embeddings."""
    expansion: PositiveInt = 2
    """g, hidden width of the decoupler as a multiple of the student's width; >= 1."""
    stages: Stages = (1, 2, 3, 4)
    """Student stages with an exit, for on="stages"."""
    spatial: NonNegativeInt = 0
    """Most cells along a side of a dense term, for students that become the body of a detector or segmenter: stage maps
    are pooled to the smaller of the two grids, and each cell is a sample of the correlation, after one linear map. 0
    turns it off. Ours, not in the paper."""
    spatial_stages: Stages = (4,)
    """Stages of the dense term, of student and teacher alike."""
    spatial_samples: NonNegativeInt = 16
    """Cells of each image in a step, other ones in the next step; 0 uses all."""
    spatial_weight: NonNegative = 0.1
    """Factor of the dense term, a mean over the stages; >= 0."""


class RSD(Method):
    """lambda * L_RSD on embeddings or logits, after a training-only decoupler.

    Source: arXiv 2507.21844; formula and defaults in `crossdistill.losses.rsd_loss`.
    """

    Options: ClassVar[type] = RSDOptions
    idea: ClassVar[str] = (
        "Drive the cross-correlation of student and teacher embeddings to the identity, after a small decoupler: "
        "keep what both architectures agree on, drop what is redundant."
    )
    paper: ClassVar[str] = "RSD, ICCV 2025, arXiv 2507.21844"
    needs = Needs(student=Reads(embedding=True), teacher=Reads(embedding=True))
    balance: ClassVar[float | None] = 1.0
    unmeasured = frozenset({"rsd_spatial"})

    def __init__(self, options: RSDOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.weights = {"rsd": options.weight}
        ours, theirs = student.spec, teacher.spec
        self.exits: nn.Module | None = None
        self.decoupler: nn.Module = nn.Identity()
        if options.on == "stages":
            self.exits = OFAExits(ours, theirs, options.stages)
        elif options.on == "logits":
            self.decoupler = _decoupler(options, ours.num_classes, theirs.num_classes)
        else:
            self.decoupler = _decoupler(options, ours.embedding_dim, theirs.embedding_dim)
        self.cells: Cells | None = None
        if options.spatial:
            self.weights["rsd_spatial"] = options.spatial_weight
            self.cells = Cells(ours, theirs, options.spatial_stages, options.spatial, options.spatial_samples)

    @classmethod
    @override
    def needs_of(cls, options: RSDOptions, student: Backbone | None = None, teacher: Backbone | None = None) -> Needs:
        dense = options.spatial_stages if options.spatial else ()
        on_stages, on_embedding = options.on == "stages", options.on == "embedding"
        logits = options.own_logits if on_stages else not on_embedding
        stages = tuple(sorted({*(options.stages if on_stages else ()), *dense}))
        return Needs(
            student=Reads(logits=logits, embedding=on_embedding, stages=stages),
            teacher=Reads(logits=not on_embedding, embedding=on_embedding, stages=dense, side=options.spatial or None),
        )

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        if self.exits is not None:
            goal, exits = teacher.require_logits(), self.exits(student.require_stages())
            followers = [*exits, student.require_logits()] if self.options.own_logits else exits
            losses = [self._loss(logits, goal) for logits in followers]
            terms = {"rsd": torch.stack(losses).sum()}
        elif self.options.on == "logits":
            terms = {"rsd": self._loss(self.decoupler(student.require_logits()), teacher.require_logits())}
        else:
            terms = {"rsd": self._loss(self.decoupler(student.embedding), teacher.embedding)}
        if self.cells is not None:
            pairs = self.cells(student.require_stages(), teacher.require_stages())
            terms["rsd_spatial"] = torch.stack([self._loss(ours, theirs) for ours, theirs in pairs]).mean()
        return terms

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        kappa = self.options.kappa
        return rsd_loss(student, teacher, kappa=min(_KAPPA, 1 / teacher.shape[1]) if kappa == "auto" else kappa)


def _decoupler(options: RSDOptions, student_dim: int, teacher_dim: int) -> nn.Module:
    if options.decoupler == "aad":
        return Decoupler(student_dim, teacher_dim, options.expansion)
    if options.decoupler == "linear":
        return linear_map(student_dim, teacher_dim)
    if student_dim == teacher_dim:
        return nn.Identity()
    raise UserError(
        f"rsd: decoupler 'none' needs equal widths, but the student's {options.on} has {student_dim} and the "
        f"teacher's {teacher_dim}; use 'linear' or 'aad'"
    )
