"""RSD: redundancy suppression distillation (ICCV 2025), the variants its paper evaluates, and two of ours."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones.stages import STAGES
from crossdistill.errors import UserError, unknown
from crossdistill.losses.rsd import rsd_loss
from crossdistill.methods.base import Method
from crossdistill.methods.projectors import Decoupler, OFAExits, check_stages, linear_map
from crossdistill.types import BackboneOutput, BackboneSpec

_VIEWS = ("embedding", "logits", "stages")
_DECOUPLERS = ("aad", "linear", "none")


@dataclass(frozen=True)
class RSDOptions:
    """Options of `rsd`; the defaults are the paper's for CIFAR-100."""

    kappa: float = 0.01
    """kappa, weight of the decorrelation of different dimensions; >= 0, and 0 leaves the invariance term alone."""
    weight: float = 0.1
    """lambda, factor of the RSD term beside the task loss; >= 0. The term grows with the teacher's width."""
    on: str = "embedding"
    """What is correlated: "embedding" (pooled, before the classifier), "logits", or "stages": OFA's exits from the
    student's stages, each against the teacher's logits, in place of OFA's loss (their sum)."""
    decoupler: str = "aad"
    """The map on the student's side: "aad" (the paper's decoupler), "linear" (one linear map) or "none" (needs equal
    widths). The paper is silent on the decoupler for logits; here it stays unless turned off."""
    expansion: int = 2
    """g, hidden width of the decoupler as a multiple of the student's width; >= 1."""
    stages: tuple[int, ...] = (1, 2, 3, 4)
    """Student stages with an exit, for on="stages"."""
    reference_width: int = 0
    """Scale the term to what it would be at this teacher width, so that one lambda and kappa fit all pairs; 0 keeps the
    paper's sums, which grow with the width. Ours, and no gain so far: 512 hurt with teachers of 64 and 96
    dimensions (docs/results.md)."""
    spatial: int = 0
    """Cells along a side of a second term that keeps spatial context: both last stage maps pooled to this grid, each
    cell a sample of the correlation, behind one linear map. 0 leaves it out. Ours."""
    spatial_weight: float = 0.1
    """Factor of the spatial term; >= 0."""

    def __post_init__(self) -> None:
        check_stages("rsd", self.stages)
        for name in ("reference_width", "spatial"):
            if getattr(self, name) < 0:
                raise UserError(f"rsd: {name} is {getattr(self, name)}; it must not be negative")
        for name in ("kappa", "weight", "spatial_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"rsd: {name} is {getattr(self, name)}; it must not be negative")
        if self.on not in _VIEWS:
            raise unknown("value of rsd's option 'on'", self.on, _VIEWS)
        if self.decoupler not in _DECOUPLERS:
            raise unknown("value of rsd's option 'decoupler'", self.decoupler, _DECOUPLERS)
        if self.expansion < 1:
            raise UserError(f"rsd: expansion is {self.expansion}; it must be at least 1")


class RSD(Method):
    """lambda * L_RSD on embeddings or logits, behind a training-only decoupler.

    Source: arXiv 2507.21844; formula and defaults in `crossdistill.losses.rsd_loss`.
    """

    Options: ClassVar[type] = RSDOptions
    idea: ClassVar[str] = (
        "Drive the cross-correlation of student and teacher embeddings to the identity, behind a small decoupler: "
        "keep what both architectures agree on, drop what is redundant."
    )
    paper: ClassVar[str] = "RSD, ICCV 2025, arXiv 2507.21844"

    def __init__(self, options: RSDOptions, student: BackboneSpec, teacher: BackboneSpec | None) -> None:
        super().__init__(options, student, teacher)
        assert teacher is not None
        self.on, self.kappa, self.grid = options.on, options.kappa, options.spatial
        self.width = options.reference_width or None
        self.weights = {"rsd": options.weight}
        self.exits = OFAExits(student, teacher, options.stages) if options.on == "stages" else None
        self.student_stages = options.on == "stages" or options.spatial > 0
        if options.on == "embedding":
            student_dim, teacher_dim = student.embedding_dim, teacher.embedding_dim
        else:
            student_dim, teacher_dim = student.num_classes, teacher.num_classes
        self.decoupler: nn.Module = nn.Identity()
        if self.exits is None:
            self.decoupler = _decoupler(options, student_dim, teacher_dim)
        self.cells: nn.Module | None = None
        if options.spatial:
            self.teacher_stages, self.one_teacher = (STAGES,), True
            self.weights["rsd_spatial"] = options.spatial_weight
            self.cells = linear_map(student.channels(STAGES), teacher.channels(STAGES))

    def _correlate(self, student: Tensor, teacher: Tensor) -> Tensor:
        return rsd_loss(student, teacher, kappa=self.kappa, width=self.width)

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        assert teacher is not None
        if self.exits is not None:
            assert student.stages is not None
            losses = [self._correlate(logits, teacher.logits) for logits in self.exits(student.stages)]
            terms = {"rsd": torch.stack(losses).sum()}
        elif self.on == "logits":
            terms = {"rsd": self._correlate(self.decoupler(student.logits), teacher.logits)}
        else:
            terms = {"rsd": self._correlate(self.decoupler(student.embedding), teacher.embedding)}
        if self.cells is not None:
            assert student.stages is not None
            assert teacher.stages is not None
            ours, theirs = (self._pooled(stages[-1]) for stages in (student.stages, teacher.stages))
            terms["rsd_spatial"] = self._correlate(self.cells(ours), theirs)
        return terms

    def _pooled(self, stage: Tensor) -> Tensor:
        """Pool a map (B, C, H, W) to the grid and give its cells as rows, (B * grid^2, C)."""
        return F.adaptive_avg_pool2d(stage, self.grid).permute(0, 2, 3, 1).flatten(0, 2)


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
