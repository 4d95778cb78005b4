"""Correlation congruence: neighbours in a batch differ from the teacher in the same way."""

from jaxtyping import Float
from torch import Tensor

from crossdistill.distributed import gather_rows, global_sum
from crossdistill.losses._context import check_same_shape, full_precision


@full_precision
def cc_loss(
    student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"], *, scale: float = 0.02
) -> Float[Tensor, ""]:
    """Mean over neighbouring rows of sum_k d_k(i) d_k(i + 1), with d = |student - teacher|, times `scale`.

    Two matrices (B, D) of any float dtype; computed in float32 or wider. At least 0; 0 for a batch of one. The rows of
    all processes are neighbours in the order of the processes. Raises ValueError for shapes that differ.

    Source: correlation congruence, ICCV 2019, arXiv 1904.01802, as its public implementations compute it.
    """
    check_same_shape(student, teacher)
    difference = (student - teacher).abs()
    pairs = (difference[:-1] * difference[1:]).sum()
    firsts, own = gather_rows(difference[:1])
    processes = len(firsts)
    # The last process has no next one, but takes part in the exchange of gradients.
    is_last = own + 1 == processes
    pairs = pairs + (difference[-1] * firsts[(own + 1) % processes]).sum() * (not is_last)
    count = global_sum(student.new_full((), len(student))) - 1
    # The mean over processes of these is the mean over all pairs.
    return scale * processes * pairs / count.clamp(min=1)
