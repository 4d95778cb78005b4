"""Knowledge distillation by softened logits."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crossdistill.losses._context import check_same_shape, check_temperature, full_precision

_EPS = 1e-12
"""Added to the variance, so that a constant row has a finite gradient."""


@full_precision
def kd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence between the softened predictions of teacher and student.

    KL(teacher || student) of logits (B, K) of any float dtype; computed in float32 or wider. At least 0, in nats
    times `temperature` squared (which keeps the size of the gradient when the temperature changes); the mean over the
    batch. Raises ValueError for shapes that differ or a temperature that is not positive.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.
    """
    check_same_shape(student_logits, teacher_logits)
    check_temperature(temperature)
    log_student = F.log_softmax(student_logits / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean") * temperature**2


@full_precision
def standardise_logits(logits: Float[Tensor, "*rows classes"]) -> Float[Tensor, "*rows classes"]:
    """Shift and scale each row of logits to mean 0 and (biased) standard deviation 1 over the classes.

    Logits (..., K) of any float dtype; computed in float32 or wider. The student then imitates the ranking of the
    teacher's logits, not their range. A constant row becomes 0.

    Source: Sun et al., CVPR 2024, arXiv 2403.01427.
    """
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return centred * (centred.square().mean(dim=-1, keepdim=True) + _EPS).rsqrt()
