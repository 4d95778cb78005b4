"""RSD: redundancy suppression distillation (ICCV 2025), with the variants its paper evaluates."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from typing_extensions import override

from crossdistill.errors import UserError, unknown
from crossdistill.losses.rsd import rsd_loss
from crossdistill.methods.base import Method
from crossdistill.methods.projectors import Decoupler, linear_map
from crossdistill.types import BackboneOutput, BackboneSpec

_VIEWS = ("embedding", "logits")
_DECOUPLERS = ("aad", "linear", "none")


@dataclass(frozen=True)
class RSDOptions:
    """Options of `rsd`; the defaults are the paper's for CIFAR-100."""

    kappa: float = 0.01
    """kappa, weight of the decorrelation of different dimensions; >= 0, and 0 leaves the invariance term alone."""
    weight: float = 0.1
    """lambda, factor of the RSD term beside the task loss; >= 0. The term grows with the teacher's width."""
    on: str = "embedding"
    """What is correlated: "embedding" (pooled, before the classifier) or "logits"."""
    decoupler: str = "aad"
    """The map on the student's side: "aad" (the paper's decoupler), "linear" (one linear map) or "none" (needs equal
    widths). The paper is silent on the decoupler for logits; here it stays unless turned off."""
    expansion: int = 2
    """g, hidden width of the decoupler as a multiple of the student's width; >= 1."""

    def __post_init__(self) -> None:
        for name in ("kappa", "weight"):
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
        self.kappa = options.kappa
        self.on = options.on
        self.weights = {"rsd": options.weight}
        if options.on == "logits":
            student_dim, teacher_dim = student.num_classes, teacher.num_classes
        else:
            student_dim, teacher_dim = student.embedding_dim, teacher.embedding_dim
        self.decoupler: nn.Module
        if options.decoupler == "aad":
            self.decoupler = Decoupler(student_dim, teacher_dim, options.expansion)
        elif options.decoupler == "linear":
            self.decoupler = linear_map(student_dim, teacher_dim)
        elif student_dim == teacher_dim:
            self.decoupler = nn.Identity()
        else:
            raise UserError(
                f"rsd: decoupler 'none' needs equal widths, but the student's {options.on} has {student_dim} and the "
                f"teacher's {teacher_dim}; use 'linear' or 'aad'"
            )

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        assert teacher is not None
        if self.on == "logits":
            ours, theirs = student.logits, teacher.logits
        else:
            ours, theirs = student.embedding, teacher.embedding
        return {"rsd": rsd_loss(self.decoupler(ours), theirs, kappa=self.kappa)}
