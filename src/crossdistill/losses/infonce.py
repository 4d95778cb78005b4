"""InfoNCE: the two embeddings of one image against the other images of the batch."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crossdistill.distributed import gather_rows
from crossdistill.losses._context import check_same_shape, check_temperature, full_precision


@full_precision
def info_nce_loss(
    student: Float[Tensor, "batch width"],
    teacher: Float[Tensor, "batch width"],
    *,
    temperature: float | Tensor = 0.07,
) -> Float[Tensor, ""]:
    """Cross entropy of finding, for each student row, the teacher row of the same image.

    Rows are L2-normalised and similarities divided by `temperature` (a number, or a scalar tensor that is learned).
    Two matrices (B, D) of any float dtype; computed in float32 or wider, in O(B^2 D). In nats; log B where all
    similarities are equal. One direction: student rows against teacher columns; for both directions take the mean
    with the arguments exchanged.

    The negatives are the rows of all processes: under DDP the value (as the mean over processes) and the gradient are
    those of the joined batch. Raises ValueError for shapes that differ, and for a number <= 0 as the temperature.

    Source: van den Oord, Li, Vinyals 2018, arXiv 1807.03748; in FBT, ICCV 2025, arXiv 2410.12342.
    """
    check_same_shape(student, teacher)
    if not isinstance(temperature, Tensor):
        check_temperature(temperature)
    rows, first = gather_rows(F.normalize(teacher, dim=1))
    similarity = F.normalize(student, dim=1) @ rows.T / temperature
    own = torch.arange(first, first + len(student), device=student.device)
    return F.cross_entropy(similarity, own)
