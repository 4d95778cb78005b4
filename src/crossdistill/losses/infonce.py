"""InfoNCE: the same image in two networks against the rest of the batch."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from crossdistill.losses._context import check_same_shape, full_precision, processes


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Join the rows of all processes, differentiably, and give the place of the first of our own.

    The backward pass brings to every process the gradients that the others found for its rows. All
    processes must have equally many.
    """
    if processes() > 1:
        from torch.distributed.nn.functional import all_gather

        return torch.cat(list(all_gather(rows.contiguous()))), dist.get_rank() * len(rows)
    return rows, 0


@full_precision
def info_nce_loss(
    student: Float[Tensor, "batch width"],
    teacher: Float[Tensor, "batch width"],
    *,
    temperature: float | Tensor = 0.07,
) -> Float[Tensor, ""]:
    """Cross entropy of finding each student row's own image among the teacher's rows.

    Rows are L2-normalised, similarities divided by `temperature` (a number, or a scalar tensor that
    learns). Two matrices (B, D), any float dtype; computed in float32 or wider, in O(B^2 D). In nats;
    log B where nothing is told apart. One way: student rows against teacher columns; for both ways
    take the mean with the arguments exchanged.

    The negatives are the rows of all processes: under DDP value (as the mean over processes) and
    gradient are those of the joined batch. Raises ValueError for shapes that differ.

    Source: van den Oord, Li, Vinyals 2018, arXiv 1807.03748; in FBT, ICCV 2025, arXiv 2410.12342.
    """
    check_same_shape(student, teacher)
    everyone, first = gather_rows(F.normalize(teacher, dim=1))
    similarity = F.normalize(student, dim=1) @ everyone.T / temperature
    own = torch.arange(first, first + len(student), device=student.device)
    return F.cross_entropy(similarity, own)
