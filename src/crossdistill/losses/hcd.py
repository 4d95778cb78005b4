"""The terms of HCD on sub-logits."""

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from crossdistill.losses._context import full_precision, hard_labels
from crossdistill.losses.kd import kd_loss


@full_precision
def orthogonality_loss(
    sublogits: Float[Tensor, "batch parts classes"],
    target: Shaped[Tensor, "batch ..."],
    *,
    threshold: float = 0.5,
) -> Float[Tensor, ""]:
    """Penalise sub-logits of one image that agree on the wrong classes.

    With the true class set to 0 and each sub-logit L2-normalised over the classes: the mean of relu(G - threshold)^2
    over the off-diagonal entries of the Gram matrix G, and over the batch. Sub-logits (B, n, K), n >= 2, of any float
    dtype; target (B,) class numbers or (B, K) probabilities (the most likely class is used); computed in float32 or
    wider. Between 0 and (1 - threshold)^2. The true class is set to zero, not masked with a huge constant, so nothing
    overflows in half precision. Raises ValueError for a single sub-logit.

    Source: HCD, AAAI 2026, arXiv 2511.10942.
    """
    parts = sublogits.shape[1]
    if parts < 2:
        raise ValueError(f"{parts} sub-logit has nothing to be orthogonal to; at least 2 are needed")
    true_class = F.one_hot(hard_labels(target), sublogits.shape[2]).to(sublogits.dtype)
    others = F.normalize(sublogits * (1 - true_class).unsqueeze(1), dim=2)
    excess = F.relu(others @ others.transpose(1, 2) - threshold).square()
    # The diagonal of G is 1, or 0 where a sub-logit is zero.
    diagonal = excess.diagonal(dim1=1, dim2=2).sum()
    return (excess.sum() - diagonal) / (len(sublogits) * parts * (parts - 1))


@full_precision
def sublogit_cross_entropy(
    sublogits: Float[Tensor, "batch parts classes"],
    target: Shaped[Tensor, "batch ..."],
    *,
    label_smoothing: float = 0.1,
) -> Float[Tensor, ""]:
    """Cross entropy of every sub-logit: the mean over batch and sub-logits.

    Sub-logits (B, n, K) of any float dtype; target (B,) class numbers, which are smoothed, or (B, K) probabilities,
    which are not; computed in float32 or wider. In nats.

    Source: HCD, AAAI 2026, arXiv 2511.10942.
    """
    smoothing = label_smoothing if target.ndim == 1 else 0.0
    repeated = target.repeat_interleave(sublogits.shape[1], dim=0)
    return F.cross_entropy(sublogits.flatten(0, 1), repeated, label_smoothing=smoothing)


@full_precision
def sublogit_divergence(
    sublogits: Float[Tensor, "batch parts classes"],
    student_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Divergence of the student from every sub-logit: the mean of T^2 * KL(softmax(F / T) || softmax(p_s / T)).

    Sub-logits (B, n, K) and student logits (B, K) of any float dtype; computed in float32 or wider; the mean over
    batch and sub-logits. At least 0, in nats times T squared.

    Source: HCD, AAAI 2026, arXiv 2511.10942.
    """
    student = student_logits.unsqueeze(1).expand_as(sublogits)
    return kd_loss(student.flatten(0, 1), sublogits.flatten(0, 1), temperature=temperature)
