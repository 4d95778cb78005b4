import math

import pytest
import torch

from crossdistill.losses import info_nce_loss
from crossdistill.losses.crd import crd_similarities
from tests.losses.inputs import student_embedding, teacher_embedding
from tests.processes import in_two_processes


def slow_info_nce(student, teacher, temperature):
    def unit(rows):
        return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows]

    ours, theirs = unit(student.tolist()), unit(teacher.tolist())
    total = 0.0
    for i, s in enumerate(ours):
        logits = [sum(a * b for a, b in zip(s, t, strict=True)) / temperature for t in theirs]
        total += math.log(sum(math.exp(v) for v in logits)) - logits[i]
    return total / len(ours)


def test_golden_values_and_gradients(golden):
    for case in golden:
        student = student_embedding(case).requires_grad_()
        loss = info_nce_loss(student, teacher_embedding(case), temperature=0.07)
        loss.backward()
        expected = case["expected"]["infonce_tau0.07_one_way"]
        assert loss.item() == pytest.approx(expected["value"], rel=1e-9)
        assert student.grad.norm().item() == pytest.approx(expected["grad_l2"], rel=1e-9)
        assert student.grad.abs().sum().item() == pytest.approx(expected["grad_sum_abs"], rel=1e-9)


def test_loops_agree():
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    for temperature in (0.07, 1.0):
        expected = slow_info_nce(student, teacher, temperature)
        assert info_nce_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-9)


def test_gradcheck_with_a_temperature_that_learns():
    student, teacher = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t, x: info_nce_loss(s, t, temperature=x), (student, teacher, temperature))


def test_scale_and_order_do_not_matter_and_blindness_costs_log_b():
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    expected = info_nce_loss(student, teacher).item()
    order = torch.randperm(6)
    assert info_nce_loss(3 * student[order], 5 * teacher[order]).item() == pytest.approx(expected)
    same = torch.ones(6, 4, dtype=torch.float64)
    assert info_nce_loss(same, same).item() == pytest.approx(math.log(6))


def _half(rank):
    student, teacher = torch.randn(2, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, theirs = (v[rank * 4 : rank * 4 + 4].clone().requires_grad_() for v in (student, teacher))
    loss = info_nce_loss(ours, theirs)
    loss.backward()
    return loss.detach(), ours.grad / 2, theirs.grad / 2


def test_negatives_of_two_processes_are_those_of_one():
    student, teacher = torch.randn(2, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    student.requires_grad_()
    teacher.requires_grad_()
    loss = info_nce_loss(student, teacher)
    loss.backward()
    results = in_two_processes(_half)
    assert sum(float(value) for value, _, _ in results) / 2 == pytest.approx(loss.item(), rel=1e-9)
    for rank, (_, ours, theirs) in enumerate(results):
        torch.testing.assert_close(ours, student.grad[rank * 4 : rank * 4 + 4])
        torch.testing.assert_close(theirs, teacher.grad[rank * 4 : rank * 4 + 4])


def test_a_temperature_that_is_not_positive_is_refused():
    rows = torch.randn(3, 4)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="it must be positive"):
            info_nce_loss(rows, rows, temperature=temperature)
        with pytest.raises(ValueError, match="it must be positive"):
            crd_similarities(rows, rows, temperature=temperature)
