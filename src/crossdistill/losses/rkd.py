"""RKD: relations between the embeddings of a batch, as distances and as angles."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crossdistill.distributed import gather_rows, global_sum
from crossdistill.losses._context import check_batch, full_precision

_ROUNDING = 16
"""Multiple of the rounding error, relative to the squared lengths, up to which two rows count as equal."""


@full_precision
def rkd_distance_loss(
    student: Float[Tensor, "batch student_width"], teacher: Float[Tensor, "batch teacher_width"]
) -> Float[Tensor, ""]:
    """Smooth L1 between the pairwise distances of both sides, each divided by its mean over the pairs.

    Two matrices (B, D_s) and (B, D_t) of any float dtype; computed in float32 or wider, in O(B^2 D). At least 0.
    Invariant to rotation, shift and scale of either side. A side whose rows are all equal has distances of 0. The pairs
    are those of the batch over all processes. Raises ValueError for different numbers of rows.

    Source: Park et al., CVPR 2019, arXiv 1904.05068, eq. 8.
    """
    check_batch(student, teacher)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _relative_distances(rows: Tensor) -> Tensor:
    """Return the distances of this process's rows to all rows, (B, B_all), divided by the mean of the positive ones."""
    rows, everyone = _centred(rows)
    lengths = rows.square().sum(1, keepdim=True) + everyone.square().sum(1)
    squares = lengths - 2 * rows @ everyone.T
    distant = _distant(squares, lengths)
    distances = torch.where(distant, squares, 1.0).sqrt() * distant
    mean = global_sum(distances.sum()) / global_sum(distant.sum().to(rows.dtype)).clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


@full_precision
def rkd_angle_loss(
    student: Float[Tensor, "batch student_width"], teacher: Float[Tensor, "batch teacher_width"]
) -> Float[Tensor, ""]:
    """Smooth L1 between the cosines of the angles that all triplets of rows form, on both sides.

    Two matrices (B, D_s) and (B, D_t) of any float dtype; computed in float32 or wider, in O(B^3 + B^2 D) time and
    memory. At least 0. Invariant to rotation, shift and scale of either side. The angle at a row that equals another
    has a cosine of 0. The triplets are those of the batch over all processes. Raises ValueError for different numbers
    of rows.

    Source: Park et al., CVPR 2019, arXiv 1904.05068, eq. 10.
    """
    check_batch(student, teacher)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def _cosines(rows: Tensor) -> Tensor:
    """Return the cosines of the angles at this process's rows, (B, B_all, B_all)."""
    rows, everyone = _centred(rows)
    differences = everyone - rows[:, None]
    squares = differences.square().sum(2)
    distant = _distant(squares, rows.square().sum(1, keepdim=True) + everyone.square().sum(1))
    directions = differences * (torch.where(distant, squares, 1.0).rsqrt() * distant)[:, :, None]
    return directions @ directions.transpose(1, 2)


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return this process's rows and all rows, less the mean of all: a large common part costs precision."""
    everyone, _ = gather_rows(rows)
    mean = everyone.detach().mean(0)
    return rows - mean, everyone - mean


def _distant(squares: Tensor, lengths: Tensor) -> Tensor:
    """Return which pairs of rows are apart: the root has no gradient at 0, and rounding noise has no meaning."""
    return squares > _ROUNDING * torch.finfo(squares.dtype).eps * lengths
