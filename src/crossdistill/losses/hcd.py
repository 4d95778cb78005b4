"""HCD's terms on sub-logits."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from crossdistill.losses._context import full_precision
from crossdistill.losses.ofa import hard_labels


@full_precision
def orthogonality_loss(
    sublogits: Float[Tensor, "batch parts classes"],
    target: Shaped[Tensor, "batch ..."],
    *,
    threshold: float = 0.5,
) -> Float[Tensor, ""]:
    """Penalise sub-logits of one image that say the same of the wrong classes.

    With the true class set to 0 and each sub-logit L2-normalised over the classes: the mean of
    relu(G - threshold)^2 over the off-diagonal entries of the Gram matrix G, and over the batch.
    Sub-logits (B, n, K), n >= 2, any float dtype; target (B,) class numbers or (B, K) soft (its
    likeliest class counts); computed in float32 or wider. Between 0 and (1 - threshold)^2. The true
    class is zeroed, not masked with a huge constant, so nothing overflows in half precision. Raises
    ValueError for a single sub-logit.

    Source: HCD, AAAI 2026, arXiv 2511.10942.
    """
    parts = sublogits.shape[1]
    if parts < 2:
        raise ValueError(f"{parts} sub-logit has nothing to be orthogonal to; at least 2 are needed")
    true_class = F.one_hot(hard_labels(target), sublogits.shape[2]).to(sublogits.dtype)
    others = F.normalize(sublogits * (1 - true_class).unsqueeze(1), dim=2)
    excess = F.relu(others @ others.transpose(1, 2) - threshold).square()
    # The diagonal of G is 1 wherever a sub-logit says anything at all.
    diagonal = excess.diagonal(dim1=1, dim2=2).sum()
    return (excess.sum() - diagonal) / (len(sublogits) * parts * (parts - 1))


@full_precision
def sublogit_losses(
    fused: Float[Tensor, "batch parts classes"],
    student_logits: Float[Tensor, "batch classes"],
    target: Shaped[Tensor, "batch ..."],
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.1,
) -> Float[Tensor, " 2"]:
    """Classify with every fused sub-logit, and let the student follow every one of them.

    Gives two scalars, each the mean over batch and sub-logits, in nats: the cross entropy of
    softmax(fused) with the target, and T^2 * KL(softmax(fused / T) || softmax(student / T)). Fused
    sub-logits (B, n, K), student logits (B, K), any float dtype; target (B,) class numbers (then
    smoothed) or (B, K) probabilities (taken as meant); computed in float32 or wider.

    Source: HCD, AAAI 2026, arXiv 2511.10942.
    """
    parts = fused.shape[1]
    flat = fused.flatten(0, 1)
    smoothing = label_smoothing if target.ndim == 1 else 0.0
    cross_entropy = F.cross_entropy(flat, target.repeat_interleave(parts, dim=0), label_smoothing=smoothing)
    towards = F.log_softmax(fused / temperature, dim=2)
    student = F.log_softmax(student_logits / temperature, dim=1).unsqueeze(1).expand_as(towards)
    divergence = F.kl_div(student.flatten(0, 1), towards.flatten(0, 1), log_target=True, reduction="batchmean")
    return torch.stack([cross_entropy, divergence * temperature**2])
