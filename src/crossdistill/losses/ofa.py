"""OFA's adaptive target loss, and the class that stands for soft labels."""

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from crossdistill.losses._context import check_same_shape, check_temperature, full_precision, hard_labels


@full_precision
def ofa_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    target: Shaped[Tensor, "batch ..."],
    *,
    eps: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Cross entropy against the teacher's prediction, with an exponent that gives the true class more weight.

    mean_b sum_c -((softmax(p_t / T) + onehot)^eps - onehot) * log_softmax(p_s / T). Logits (B, K) of any float dtype;
    target (B,) class numbers or (B, K) probabilities (the most likely class is used); computed in float32 or wider,
    finite for any gap between logits. In nats. eps = 1 is the cross entropy with the teacher; a larger one gives the
    true class more weight. Raises ValueError for shapes that differ, eps < 1 or a temperature that is not positive.

    Source: OFA-KD, NeurIPS 2023, arXiv 2310.19444.
    """
    check_same_shape(student_logits, teacher_logits)
    if not eps >= 1:
        raise ValueError(f"eps is {eps}; it must be at least 1")
    check_temperature(temperature)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    onehot = F.one_hot(hard_labels(target), teacher.shape[1]).to(teacher.dtype)
    goal = (teacher + onehot) ** eps - onehot
    return -(goal * F.log_softmax(student_logits / temperature, dim=1)).sum(dim=1).mean()
