"""HCD: heterogeneous complementary distillation (AAAI 2026)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.errors import UserError, unknown
from crossdistill.losses.hcd import orthogonality_loss, sublogit_cross_entropy, sublogit_divergence
from crossdistill.losses.kd import kd_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.methods.projectors import StageProjectors, check_stages
from crossdistill.types import BackboneOutput, BackboneSpec

_REDUCTIONS = ("sum", "mean")


@dataclass(frozen=True)
class HCDOptions:
    """Options of `hcd`; the defaults are the published ones for CIFAR-100."""

    stages: tuple[int, ...] = (1, 2, 3, 4)
    """Student stages that are mixed with the teacher's embedding."""
    parts: int = 4
    """n, sub-logits per stage; >= 1."""
    student_fusion: float = 1.0
    """lambda_s, share of a sub-logit in its fusion with the teacher's logits."""
    teacher_fusion: float = 1.0
    """lambda_t, share of the teacher's logits in the fusion."""
    kl_weight: float = 6.0
    """w, factor of the student's divergence from the fused sub-logits; >= 0."""
    temperature: float = 1.0
    """T, what logits are divided by in both divergences; > 0."""
    orthogonality_weight: float = 1.0
    """beta, factor of the orthogonality loss; >= 0."""
    threshold: float = 0.5
    """theta, cosine between two sub-logits up to which nothing is penalised; in [-1, 1]."""
    kd_weight: float = 1.0
    """Factor of plain KD between the logits; >= 0."""
    ce_weight: float = 1.0
    """Factor of the fused sub-logits' own cross entropy; >= 0."""
    label_smoothing: float = 0.1
    """Smoothing of class numbers in the sub-logits' cross entropy; in [0, 1). The paper smooths the student's own cross
    entropy by 0.1 too: that is the task loss, optim.label_smoothing."""
    detach: bool = False
    """Keep the gradient of the divergence from the mapper. The published behaviour lets it through; stopping it is
    reported to steady training."""
    standardise: bool = False
    """Standardise all logits over the classes before the softmax of both divergences (arXiv 2403.01427)."""
    reduction: str = "sum"
    """Over the stages: "sum" (published) or "mean"."""

    def __post_init__(self) -> None:
        check_stages("hcd", self.stages)
        if self.parts < 1:
            raise UserError(f"hcd: parts is {self.parts}; it must be at least 1")
        if not self.temperature > 0:
            raise UserError(f"hcd: temperature is {self.temperature}; it must be positive")
        if not -1 <= self.threshold <= 1:
            raise UserError(f"hcd: threshold is {self.threshold}; it is a cosine, between -1 and 1")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"hcd: label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        for name in ("kl_weight", "orthogonality_weight", "kd_weight", "ce_weight"):
            if not getattr(self, name) >= 0:
                raise UserError(f"hcd: {name} is {getattr(self, name)}; it must not be negative")
        if self.reduction not in _REDUCTIONS:
            raise unknown("value of hcd's option 'reduction'", self.reduction, _REDUCTIONS)


class ComplementaryMappers(nn.Module):
    """CFM of all stages at once: their vectors and the teacher's embedding become sub-logits.

    (S, B, D) and (B, D_t) give (B, S, n, K). Each stage has its own two linear layers, initialised as
    torch's; they are kept side by side so that a step takes two batched products, whatever S is.
    """

    def __init__(self, stages: int, width: int, teacher_dim: int, parts: int, num_classes: int) -> None:
        super().__init__()
        self.stages, self.parts = stages, parts
        self.mix, self.mix_bias = _linears(stages, width + teacher_dim, teacher_dim)
        self.classify, self.classify_bias = _linears(stages, teacher_dim, parts * num_classes)

    @override
    def forward(self, vectors: Tensor, teacher: Tensor) -> Tensor:
        again = teacher.to(vectors.dtype).expand(self.stages, -1, -1)
        mixed = F.relu(self._apart(torch.cat([vectors, again], dim=2), self.mix, self.mix_bias))
        shared = self._apart(mixed, self.classify, self.classify_bias)
        return shared.transpose(0, 1).unflatten(2, (self.parts, -1))

    def _apart(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.view(self.stages, 1, -1), inputs, weight)


def _linears(count: int, inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Give the weights (count, inputs, outputs) and biases of linear layers; biases flat, so that they do not decay."""
    layers = [nn.Linear(inputs, outputs) for _ in range(count)]
    weight = torch.stack([layer.weight.detach().T for layer in layers])
    return nn.Parameter(weight), nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))


class HCD(Method):
    """Sub-logits that student stages and teacher embedding make together, fused with the teacher's logits.

    Total, with F_ij = lambda_s S_ij + lambda_t p_t: KD(p_s, p_t) + sum_i mean_j [CE(F_ij, y) +
    w KL(F_ij || p_s) T^2] + beta sum_i OL_i, beside the task loss CE(p_s, y). The terms are logged
    unweighted, summed (or averaged) over the stages.

    Source: arXiv 2511.10942.
    """

    Options: ClassVar[type] = HCDOptions
    idea: ClassVar[str] = (
        "Mix each student stage with the teacher's embedding into shared sub-logits, keep these apart, "
        "fuse them with the teacher's logits, and let the student follow."
    )
    paper: ClassVar[str] = "HCD, AAAI 2026, arXiv 2511.10942"
    student_stages = True

    def __init__(self, options: HCDOptions, student: BackboneSpec, teacher: BackboneSpec | None) -> None:
        super().__init__(options, student, teacher)
        assert teacher is not None
        self.options = options
        self.weights = {
            "kd": options.kd_weight,
            "hcd_ce": options.ce_weight,
            "hcd_kl": options.kl_weight,
            "hcd_orthogonality": options.orthogonality_weight,
        }
        if options.parts == 1:
            del self.weights["hcd_orthogonality"]
        width = max(student.embedding_dim, teacher.embedding_dim)
        self.projectors = StageProjectors(student, options.stages, width)
        self.mappers = ComplementaryMappers(
            len(options.stages), width, teacher.embedding_dim, options.parts, student.num_classes
        )

    def fused(self, student: BackboneOutput, teacher: BackboneOutput) -> Tensor:
        """Give the fused sub-logits of all stages, (B, S, n, K), in float32."""
        assert student.stages is not None
        vectors = self.projectors(student.stages)
        sublogits = self.mappers(torch.stack(list(vectors)), teacher.embedding).float()
        logits = teacher.logits.float()[:, None, None]
        return self.options.student_fusion * sublogits + self.options.teacher_fusion * logits

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput | None, targets: Tensor) -> dict[str, Tensor]:
        assert teacher is not None
        o = self.options
        fused = self.fused(student, teacher)
        stages = fused.shape[1]
        # All losses are means over batch, stages and parts; a sum over stages is that times their number.
        factor = stages if o.reduction == "sum" else 1
        flat = fused.flatten(1, 2)
        led, leading = comparable(student.logits, flat.detach() if o.detach else flat, o.standardise)
        ours, theirs = comparable(student.logits, teacher.logits, o.standardise)
        terms = {
            "kd": kd_loss(ours, theirs, temperature=o.temperature),
            "hcd_ce": factor * sublogit_cross_entropy(flat, targets, label_smoothing=o.label_smoothing),
            "hcd_kl": factor * sublogit_divergence(leading, led, temperature=o.temperature),
        }
        if o.parts > 1:
            each = fused.flatten(0, 1)
            labels = targets.repeat_interleave(stages, dim=0)
            terms["hcd_orthogonality"] = factor * orthogonality_loss(each, labels, threshold=o.threshold)
        return terms
