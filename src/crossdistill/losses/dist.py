"""DIST: the relations within and between predictions, measured by Pearson's correlation."""

from jaxtyping import Float
from torch import Tensor

from crossdistill.distributed import global_sum
from crossdistill.losses._context import check_same_shape, check_temperature, full_precision

_EPS = 1e-8
"""Added to the product of two lengths, so that the correlation with a constant column is 0."""
_TINY = 1e-30
"""Lower bound under the square root, which has no gradient at 0."""


def _correlation(covariance: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    return covariance / ((student * teacher).clamp(min=_TINY).sqrt() + _EPS)


@full_precision
def dist_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Beta * (1 - r over the classes of an image) + gamma * (1 - r over the images of a class), times T^2.

    r is Pearson's correlation between the softened probabilities of student and teacher, averaged over images and
    over classes. Logits (B, K) of any float dtype; computed in float32 or wider. Between 0 and 2 T^2 (beta + gamma).
    The correlation with a constant counts as 0. The images of a class are those of all processes. Raises ValueError
    for shapes that differ or a temperature that is not positive.

    Source: Huang et al., NeurIPS 2022, arXiv 2205.10536, eq. 8 to 10.
    """
    check_same_shape(student_logits, teacher_logits)
    check_temperature(temperature)
    student, teacher = ((logits / temperature).softmax(dim=1) for logits in (student_logits, teacher_logits))
    s, t = (p - p.mean(dim=1, keepdim=True) for p in (student, teacher))
    inter = _correlation((s * t).sum(dim=1), s.square().sum(dim=1), t.square().sum(dim=1)).mean()
    count = global_sum(student.new_full((), len(student)))
    s, t = (p - global_sum(p.sum(dim=0)) / count for p in (student, teacher))
    sums = [global_sum(v.sum(dim=0)) for v in (s * t, s.square(), t.square())]
    intra = _correlation(*sums).mean()
    return (beta * (1 - inter) + gamma * (1 - intra)) * temperature**2
