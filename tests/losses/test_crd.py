import math

import pytest
import torch

from crossdistill.losses import crd_loss
from crossdistill.losses.crd import crd_normaliser
from tests.processes import in_two_processes


def slow_crd(positive, negatives, counted, normaliser, noise):
    total = 0.0
    for same, others, used in zip(positive, negatives, counted, strict=True):
        p = same / normaliser
        total -= math.log(p / (p + noise + 1e-7))
        for other, use in zip(others, used, strict=True):
            total -= math.log(noise / (other / normaliser + noise + 1e-7)) if use else 0.0
    return total / len(positive)


def similarities(dtype=torch.float64):
    positive = torch.rand(5, dtype=dtype) * 4
    negatives = torch.rand(5, 9, dtype=dtype) * 4
    return positive.exp(), negatives.exp(), torch.rand(5, 9) > 0.3


def test_loops_agree():
    positive, negatives, counted = similarities()
    normaliser = crd_normaliser(negatives, 40)
    assert normaliser.item() == pytest.approx(negatives.mean().item() * 40, rel=1e-6)
    ours = crd_loss(positive, negatives, counted, normaliser=normaliser, noise=9 / 40)
    expected = slow_crd(positive.tolist(), negatives.tolist(), counted.tolist(), normaliser.item(), 9 / 40)
    assert ours.item() == pytest.approx(expected, rel=1e-9)


def test_gradcheck():
    positive, negatives, counted = similarities()
    normaliser = torch.tensor(30.0, dtype=torch.float64)
    inputs = (positive.requires_grad_(), negatives.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, n: crd_loss(p, n, counted, normaliser=normaliser, noise=0.2), inputs)


def test_a_negative_that_is_not_counted_does_not_matter_and_the_order_neither():
    positive, negatives, counted = similarities()
    kwargs = {"normaliser": torch.tensor(30.0, dtype=torch.float64), "noise": 0.2}
    expected = crd_loss(positive, negatives, counted, **kwargs).item()
    changed = torch.where(counted, negatives, 7.0)
    assert crd_loss(positive, changed, counted, **kwargs).item() == expected
    order = torch.randperm(9)
    assert crd_loss(positive, negatives[:, order], counted[:, order], **kwargs).item() == pytest.approx(expected)
    assert crd_loss(2 * positive, negatives, counted, **kwargs).item() < expected
    assert crd_loss(positive, 2 * negatives, counted, **kwargs).item() > expected


def test_half_precision_is_computed_in_full():
    positive, negatives, counted = similarities(torch.float32)
    kwargs = {"normaliser": torch.tensor(30.0), "noise": 0.2}
    half = crd_loss(positive.half(), negatives.half(), counted, **kwargs)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(crd_loss(positive, negatives, counted, **kwargs).item(), rel=1e-2)


def _normaliser(rank):
    values = torch.arange(16.0).view(4, 4)
    return crd_normaliser(values[2 * rank : 2 * rank + 2], 10)


def test_the_normaliser_is_that_of_all_processes():
    expected = crd_normaliser(torch.arange(16.0).view(4, 4), 10)
    for found in in_two_processes(_normaliser):
        assert float(found) == pytest.approx(expected.item())
