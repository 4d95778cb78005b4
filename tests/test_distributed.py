"""Sums, rows and batch norms over two real processes equal those of one with the joined batch."""

import torch
import torch.nn as nn

from crossdistill.distributed import GlobalBatchNorm1d, GlobalBatchNorm2d, gather_rows, global_sum, processes
from tests.processes import in_two_processes


def joined(shape=(8, 3, 4, 4)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_process_is_left_alone():
    rows = torch.ones(2, 3)
    assert processes() == 1
    assert global_sum(rows) is rows
    assert gather_rows(rows)[0] is rows


def _sums(rank):
    rows = joined((8, 3))[rank::2].clone().requires_grad_()
    everyone, first = gather_rows(rows)
    (global_sum(rows.sum()).square() + everyone.square().sum()).backward()
    return processes(), first, everyone, rows.grad / 2


def test_sums_and_rows():
    whole = joined((8, 3)).requires_grad_()
    (whole.sum().square() + whole.square().sum()).backward()
    for rank, (count, first, everyone, grad) in enumerate(in_two_processes(_sums)):
        assert (count, first) == (2, 4 * rank)
        torch.testing.assert_close(everyone, torch.cat([joined((8, 3))[0::2], joined((8, 3))[1::2]]))
        torch.testing.assert_close(grad, whole.grad[rank::2])


def _normed(rank, ndim):
    images = joined() if ndim == 4 else joined((8, 3))
    part = images[rank::2].clone().requires_grad_()
    norm = (GlobalBatchNorm2d if ndim == 4 else GlobalBatchNorm1d)(3).double()
    out = norm(part)
    out.pow(3).sum().backward()
    return out, part.grad, norm.running_mean, norm.running_var


def test_batch_norms_have_the_statistics_of_all():
    for ndim in (2, 4):
        whole = (joined() if ndim == 4 else joined((8, 3))).requires_grad_()
        norm = (nn.BatchNorm2d if ndim == 4 else nn.BatchNorm1d)(3).double()
        out = norm(whole)
        out.pow(3).sum().backward()
        for rank, (part, grad, mean, var) in enumerate(in_two_processes(_normed, ndim)):
            torch.testing.assert_close(part, out.detach()[rank::2])
            torch.testing.assert_close(grad, whole.grad[rank::2])
            torch.testing.assert_close(mean, norm.running_mean)
            torch.testing.assert_close(var, norm.running_var)
