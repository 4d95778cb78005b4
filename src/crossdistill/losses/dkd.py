"""DKD: the true class and the other classes are distilled separately."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from crossdistill.losses._context import check_same_shape, check_temperature, full_precision, hard_labels


@full_precision
def dkd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    target: Shaped[Tensor, "batch ..."],
    *,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Alpha * TCKD + beta * NCKD.

    TCKD is the divergence KL(teacher || student) of the two-class prediction (true class, all others), NCKD that of
    the prediction among the other classes; both on softened logits. Logits (B, K), K >= 2, of any float dtype; target
    (B,) class numbers or (B, K) probabilities (the most likely class is used); computed in float32 or wider from
    logarithms, finite for any gap between logits. At least 0, in nats times `temperature` squared; the mean over the
    batch. Raises ValueError for shapes that differ or a temperature that is not positive.

    Source: Zhao et al., CVPR 2022, arXiv 2203.08679, eq. 7.
    """
    check_same_shape(student_logits, teacher_logits)
    check_temperature(temperature)
    labels = hard_labels(target).unsqueeze(1)
    columns = torch.arange(student_logits.shape[1] - 1, device=labels.device)
    others = columns + (columns >= labels).long()
    student_pair, student_rest = _split(student_logits / temperature, labels, others)
    teacher_pair, teacher_rest = _split(teacher_logits / temperature, labels, others)
    target_class = F.kl_div(student_pair, teacher_pair, log_target=True, reduction="batchmean")
    other_classes = F.kl_div(student_rest, teacher_rest, log_target=True, reduction="batchmean")
    return (alpha * target_class + beta * other_classes) * temperature**2


def _split(logits: Tensor, labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of (true class, others), (B, 2), and among the others, (B, K - 1)."""
    rest = logits.gather(1, others)
    pair = torch.cat([logits.gather(1, labels), rest.logsumexp(dim=1, keepdim=True)], dim=1)
    return pair.log_softmax(dim=1), rest.log_softmax(dim=1)
