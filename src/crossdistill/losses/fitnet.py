"""FitNet: the student's feature map equals the teacher's."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crossdistill.losses._context import full_precision


@full_precision
def fitnet_loss(
    student: Float[Tensor, "batch channels height width"], teacher: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, ""]:
    """Mean squared difference of two feature maps (B, C, H, W) of any float dtype; computed in float32 or wider.

    Raises ValueError for shapes that differ.

    Source: FitNets, ICLR 2015, arXiv 1412.6550, eq. 3.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be two maps of one shape; project "
            "the student's channels and resize the larger map first"
        )
    return F.mse_loss(student, teacher)
