"""Distillation from a stronger teacher: relations within and between predictions, by Pearson's correlation."""

from jaxtyping import Float
from torch import Tensor

from crossdistill.losses._context import check_same_shape, full_precision, global_sum

_EPS = 1e-8
"""Beside the product of two lengths, so that constant columns correlate by 0."""
_TINY = 1e-30
"""Under the root, which has no gradient at 0."""


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

    r is Pearson's correlation of the two sides' softened probabilities, averaged over images and over
    classes. Logits (B, K), any float dtype; computed in float32 or wider. Between 0 and
    2 T^2 (beta + gamma). A correlation with something constant counts as 0. The images of a class
    are those of all processes. Raises ValueError for shapes that differ or a temperature that is not
    positive.

    Source: Huang et al., NeurIPS 2022, arXiv 2205.10536, eq. 8 to 10.
    """
    check_same_shape(student_logits, teacher_logits)
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    student, teacher = ((logits / temperature).softmax(dim=1) for logits in (student_logits, teacher_logits))
    ours, theirs = (p - p.mean(dim=1, keepdim=True) for p in (student, teacher))
    inter = _correlation((ours * theirs).sum(dim=1), ours.square().sum(dim=1), theirs.square().sum(dim=1)).mean()
    count = global_sum(student.new_full((), len(student)))
    ours, theirs = (p - global_sum(p.sum(dim=0)) / count for p in (student, teacher))
    sums = [global_sum(v.sum(dim=0)) for v in (ours * theirs, ours.square(), theirs.square())]
    intra = _correlation(*sums).mean()
    return (beta * (1 - inter) + gamma * (1 - intra)) * temperature**2
