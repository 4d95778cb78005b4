"""OFA's adaptive target loss, and what soft labels mean where a method needs a class."""

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from crossdistill.losses._context import check_same_shape, full_precision


def hard_labels(target: Shaped[Tensor, "batch ..."]) -> Shaped[Tensor, " batch"]:
    """Give class numbers (B,): the targets themselves, or the likeliest class of soft targets (B, K).

    Under mixup or CutMix that is the class of the larger share.
    """
    return target if target.ndim == 1 else target.argmax(dim=1)


@full_precision
def ofa_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    target: Shaped[Tensor, "batch ..."],
    *,
    eps: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Cross entropy against the teacher's prediction, with the true class raised by a modulation exponent.

    mean_b sum_c -((softmax(p_t / T) + onehot)^eps - onehot) * log_softmax(p_s / T). Logits (B, K), any
    float dtype; target (B,) class numbers or (B, K) soft (its likeliest class counts); computed in
    float32 or wider, finite at any logit gap. In nats. eps = 1 is the cross entropy with the teacher;
    a larger one trusts the true class more. Raises ValueError for shapes that differ, eps < 1 or a
    temperature that is not positive.

    Source: OFA-KD, NeurIPS 2023, arXiv 2310.19444.
    """
    check_same_shape(student_logits, teacher_logits)
    if not eps >= 1:
        raise ValueError(f"eps is {eps}; it must be at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    onehot = F.one_hot(hard_labels(target), teacher.shape[1]).to(teacher.dtype)
    wanted = (teacher + onehot) ** eps - onehot
    return -(wanted * F.log_softmax(student_logits / temperature, dim=1)).sum(dim=1).mean()
