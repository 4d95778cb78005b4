"""Redundancy suppression: the cross-correlation of two embeddings, driven to the identity."""

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.distributed import global_sum, processes
from crossdistill.losses._context import check_same_shape, full_precision

_EPS = 1e-5
"""Added to the standard deviation (not the variance), as the authors' code does."""


def _standardise(x: Tensor, count: Tensor) -> Tensor:
    centred = x - global_sum(x.sum(dim=0)) / count
    variance = global_sum(centred.square().sum(dim=0)) / count
    # sqrt has no gradient at 0, and a dead unit or a batch of one image has a variance of exactly 0.
    alive = variance > 0
    std = torch.where(alive, variance, 1.0).sqrt() * alive
    return centred / (std + _EPS)


@full_precision
def rsd_loss(
    student: Float[Tensor, "batch width"], teacher: Float[Tensor, "batch width"], *, kappa: float = 0.01
) -> Float[Tensor, ""]:
    """Squared distance of the student-teacher cross-correlation matrix from the identity.

    With P = teacher_hat^T @ student_hat / B, where the columns of both are standardised over the batch, returns
    sum_i (P_ii - 1)^2 + kappa * sum_{i != j} P_ij^2. Two matrices (B, D) of any float dtype; computed in float32 or
    wider, in O(B D min(B, D)) in one process and O(B D^2) over several. At least 0; grows with D. Invariant to a
    shift or a positive scale of any column (up to the 1e-5 added to the standard deviation). `kappa` = 0 keeps
    only the invariance term, in O(B D).

    B is the batch over all processes: value and gradient (under DDP) do not depend on how it is divided. Raises
    ValueError for shapes that differ or a negative kappa.

    Source: RSD, ICCV 2025, arXiv 2507.21844.
    """
    check_same_shape(student, teacher)
    if not kappa >= 0:
        raise ValueError(f"kappa is {kappa}; it must not be negative")
    count = global_sum(student.new_full((), len(student)))
    student_hat = _standardise(student, count)
    teacher_hat = _standardise(teacher, count)
    if kappa == 0:
        return (_diagonal(student_hat, teacher_hat, count) - 1).square().sum()
    if len(student) < student.shape[1] and processes() == 1:
        # |T'S|^2 = <TT', SS'>: with fewer images than dimensions the Gram matrices of the images are the smaller ones.
        squares = ((teacher_hat @ teacher_hat.T) * (student_hat @ student_hat.T)).sum() / count.square()
        diagonal = _diagonal(student_hat, teacher_hat, count)
    else:
        correlation = global_sum(teacher_hat.T @ student_hat) / count
        squares, diagonal = correlation.square().sum(), correlation.diagonal()
    # The off-diagonal sum as a difference: no mask and no identity of size D^2 is built.
    off_diagonal = squares - diagonal.square().sum()
    return (diagonal - 1).square().sum() + kappa * off_diagonal


def _diagonal(student_hat: Tensor, teacher_hat: Tensor, count: Tensor) -> Tensor:
    return global_sum((teacher_hat * student_hat).sum(dim=0)) / count
