import math

import pytest
import torch

from crossdistill.losses import kd_loss, standardise_logits
from tests.losses.inputs import student_logits, teacher_logits


def slow_kd(student, teacher, temperature):
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s_exp = [math.exp(v / temperature) for v in s_row]
        t_exp = [math.exp(v / temperature) for v in t_row]
        for s, t in zip(s_exp, t_exp, strict=True):
            p_s, p_t = s / sum(s_exp), t / sum(t_exp)
            total += p_t * (math.log(p_t) - math.log(p_s))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_golden_values_and_gradients(golden, temperature):
    for case in golden:
        student = student_logits(case).requires_grad_()
        loss = kd_loss(student, teacher_logits(case), temperature=temperature)
        loss.backward()
        expected = case["expected"][f"kd_T{temperature:g}"]
        assert loss.item() == pytest.approx(expected["value"], rel=1e-9)
        assert student.grad.norm().item() == pytest.approx(expected["grad_l2"], rel=1e-9)
        assert student.grad.abs().sum().item() == pytest.approx(expected["grad_sum_abs"], rel=1e-9)


def test_loops_agree():
    student, teacher = torch.randn(5, 7, dtype=torch.float64), 3 * torch.randn(5, 7, dtype=torch.float64)
    for temperature in (0.5, 1.0, 4.0):
        assert kd_loss(student, teacher, temperature=temperature).item() == pytest.approx(
            slow_kd(student, teacher, temperature), rel=1e-9
        )


def test_gradcheck():
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: kd_loss(s, t, temperature=2.0), (student, teacher))


def test_nothing_to_learn_from_oneself_or_a_shift():
    logits = torch.randn(6, 10, dtype=torch.float64)
    assert kd_loss(logits, logits).item() == pytest.approx(0, abs=1e-12)
    assert kd_loss(logits + 3, logits).item() == pytest.approx(0, abs=1e-12)


def test_order_of_images_and_classes_does_not_matter():
    student, teacher = torch.randn(2, 6, 10, dtype=torch.float64)
    rows, columns = torch.randperm(6), torch.randperm(10)
    assert kd_loss(student[rows][:, columns], teacher[rows][:, columns]).item() == pytest.approx(
        kd_loss(student, teacher).item(), rel=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_gaps_stay_finite_in_half_precision(dtype):
    student = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[120.0, 0, 0, 0], [0, -120, 0, 0]], dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kd_loss(student, teacher, temperature=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_bad_input_is_named(unchecked_shapes):
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="temperature is 0"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=0)


def test_standardised_logits():
    logits = 5 * torch.randn(6, 10, dtype=torch.float64) + 3
    out = standardise_logits(logits)
    for row, before in zip(out.tolist(), logits.tolist(), strict=True):
        mean = sum(before) / 10
        std = math.sqrt(sum((v - mean) ** 2 for v in before) / 10)
        assert row == pytest.approx([(v - mean) / std for v in before], rel=1e-9)
    torch.testing.assert_close(standardise_logits(7 * logits - 2), out)
    assert torch.autograd.gradcheck(standardise_logits, logits.requires_grad_())
    constant = torch.ones(2, 4, requires_grad=True)
    standardise_logits(constant).sum().backward()
    assert torch.isfinite(constant.grad).all()
