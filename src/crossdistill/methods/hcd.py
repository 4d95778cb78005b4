"""HCD: heterogeneous complementary distillation (AAAI 2026)."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.config.validation import FractionBelowOne, NonNegative, Number, Positive, PositiveInt, settings
from crossdistill.losses.hcd import orthogonality_loss, sublogit_cross_entropy, sublogit_divergence
from crossdistill.losses.kd import kd_loss
from crossdistill.methods.base import Method, comparable
from crossdistill.methods.projectors import LINEAR_STD, StageProjectors, Stages
from crossdistill.types import BackboneOutput, Needs, Reads


@settings
class HCDOptions:
    """Options of `hcd`; the defaults are the published ones for CIFAR-100, except `target_gradient`."""

    stages: Stages = (1, 2, 3, 4)
    """Student stages that are mixed with the teacher's embedding."""
    parts: PositiveInt = 4
    """n, sub-logits for each stage; >= 1."""
    student_fusion: Number = 1.0
    """lambda_s, factor of a sub-logit in its fusion with the teacher's logits."""
    teacher_fusion: Number = 1.0
    """lambda_t, factor of the teacher's logits in the fusion."""
    kl_weight: NonNegative = 6.0
    """w, factor of the student's divergence from the fused sub-logits; >= 0."""
    temperature: Positive = 1.0
    """T, divisor of the logits in both divergences; > 0."""
    orthogonality_weight: NonNegative = 1.0
    """beta, factor of the orthogonality loss; >= 0."""
    threshold: Annotated[float, Field(strict=True, ge=-1, le=1)] = 0.5
    """theta, cosine between two sub-logits up to which nothing is penalised; in [-1, 1]."""
    kd_weight: NonNegative = 1.0
    """Factor of plain KD between the logits; >= 0."""
    ce_weight: NonNegative = 1.0
    """Factor of the cross entropy of the fused sub-logits; >= 0."""
    label_smoothing: FractionBelowOne = 0.1
    """Smoothing of class numbers in the cross entropy of the sub-logits; in [0, 1). The paper smooths the student's own
    cross entropy by 0.1 as well: that is the task loss, optim.label_smoothing."""
    target_gradient: Literal["detached", "published"] = "detached"
    """Gradient of the divergence with respect to the fused target: "detached" stops it, "published" lets it reach the
    mapper, which then moves the target towards the student. Accuracy on CIFAR-100 without a teacher / published /
    detached, means of 3 seeds: ViT to CNN 25.8 / 6.6 / 30.8 with AdamW and 26.4 / 9.4 / 35.8 with SGD, CNN to ViT
    18.0 / 10.5 / 21.3 and 14.0 / 1.0 / 19.0 (docs/results.md)."""
    orthogonality_on: Literal["fused", "sublogits"] = "fused"
    """Where the sub-logits are kept apart: "fused", after their fusion with the teacher's logits (published), or
    "sublogits", before it (one version of the authors' notes)."""
    standardise: bool = False
    """Standardise all logits over the classes before the softmax of both divergences (arXiv 2403.01427)."""
    reduction: Literal["sum", "mean"] = "sum"
    """Over the stages: "sum" (published) or "mean"."""


class ComplementaryMappers(nn.Module):
    """CFM of all stages at once: their vectors and the teacher's embedding become sub-logits.

    (S, B, D) and (B, D_t) -> (B, S, n, K). Each stage has its own two linear layers; they are stored together so that a
    step takes two batched products, whatever S is. Weights start truncated normal with std 0.02, biases at zero.
    """

    def __init__(self, stages: int, width: int, teacher_dim: int, parts: int, num_classes: int) -> None:
        super().__init__()
        self.stages, self.parts = stages, parts
        self.mix, self.mix_bias = _linears(stages, width + teacher_dim, teacher_dim)
        self.classify, self.classify_bias = _linears(stages, teacher_dim, parts * num_classes)

    @override
    def forward(self, vectors: Tensor, teacher: Tensor) -> Tensor:
        repeated = teacher.to(vectors.dtype).expand(self.stages, -1, -1)
        mixed = F.relu(self._linear(torch.cat([vectors, repeated], dim=2), self.mix, self.mix_bias))
        shared = self._linear(mixed, self.classify, self.classify_bias)
        return shared.transpose(0, 1).unflatten(2, (self.parts, -1))

    def _linear(self, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.view(self.stages, 1, -1), inputs, weight)


def _linears(count: int, inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Make weights (count, inputs, outputs) and biases of linear layers; flat biases are not decayed."""
    weight = nn.init.trunc_normal_(torch.empty(count, inputs, outputs), std=LINEAR_STD)
    return nn.Parameter(weight), nn.Parameter(torch.zeros(count * outputs))


class HCD(Method):
    """Sub-logits of student stages and teacher embedding, fused with the teacher's logits.

    Total, with F_ij = lambda_s S_ij + lambda_t p_t: KD(p_s, p_t) + sum_i mean_j [CE(F_ij, y) + w KL(F_ij || p_s) T^2] +
    beta sum_i OL_i, beside the task loss CE(p_s, y). The terms are logged unweighted, summed (or averaged) over the
    stages.

    Source: arXiv 2511.10942.
    """

    Options: ClassVar[type] = HCDOptions
    idea: ClassVar[str] = (
        "Mix each student stage with the teacher's embedding into shared sub-logits, keep these apart, "
        "fuse them with the teacher's logits, and let the student follow."
    )
    paper: ClassVar[str] = "HCD, AAAI 2026, arXiv 2511.10942"
    needs = Needs(
        student=Reads(logits=True, stages=(1, 2, 3, 4)),
        teacher=Reads(logits=True, embedding=True),
        labels=True,
    )
    unmeasured = frozenset({"hcd_ce", "hcd_orthogonality"})

    def __init__(self, options: HCDOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        self.options = options
        self.weights = {
            "kd": options.kd_weight,
            "hcd_ce": options.ce_weight,
            "hcd_kl": options.kl_weight,
            "hcd_orthogonality": options.orthogonality_weight,
        }
        if options.parts == 1:
            del self.weights["hcd_orthogonality"]
        teacher_dim = teacher.spec.embedding_dim
        width = max(student.spec.embedding_dim, teacher_dim)
        self.projectors = StageProjectors(student.spec, options.stages, width)
        self.mappers = ComplementaryMappers(
            len(options.stages), width, teacher_dim, options.parts, student.spec.num_classes
        )

    @classmethod
    @override
    def needs_of(cls, options: HCDOptions, student: Backbone | None = None, teacher: Backbone | None = None) -> Needs:
        return Needs(student=Reads(logits=True, stages=options.stages), teacher=cls.needs.teacher, labels=True)

    def sublogits(self, student: BackboneOutput, teacher: BackboneOutput) -> Tensor:
        """Return the sub-logits of all stages before fusion, (B, S, n, K), in float32."""
        vectors = self.projectors(student.require_stages())
        sublogits: Tensor = self.mappers(torch.stack(list(vectors)), teacher.embedding)
        return sublogits.float()

    @override
    def forward(self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor) -> dict[str, Tensor]:
        o = self.options
        sublogits = self.sublogits(student, teacher)
        goal, own = teacher.require_logits(), student.require_logits()
        fused = o.student_fusion * sublogits + o.teacher_fusion * goal.float()[:, None, None]
        stages = fused.shape[1]
        # All losses are means over batch, stages and parts; a sum over stages is that times their number.
        factor = stages if o.reduction == "sum" else 1
        flat = fused.flatten(1, 2)
        target = flat.detach() if o.target_gradient == "detached" else flat
        following, followed = comparable(own, target, o.standardise)
        terms = {
            "kd": kd_loss(*comparable(own, goal, o.standardise), temperature=o.temperature),
            "hcd_ce": factor * sublogit_cross_entropy(flat, targets, label_smoothing=o.label_smoothing),
            "hcd_kl": factor * sublogit_divergence(followed, following, temperature=o.temperature),
        }
        if o.parts > 1:
            each = (fused if o.orthogonality_on == "fused" else sublogits).flatten(0, 1)
            labels = targets.repeat_interleave(stages, dim=0)
            terms["hcd_orthogonality"] = factor * orthogonality_loss(each, labels, threshold=o.threshold)
        return terms
