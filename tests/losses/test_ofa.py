import math

import pytest
import torch
import torch.nn.functional as F

from crossdistill.losses import ofa_loss
from tests.losses.inputs import labels, student_logits, teacher_logits


def slow_ofa(student, teacher, target, eps, temperature):
    total = 0.0
    for s_row, t_row, label in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        s_exp = [math.exp(v / temperature) for v in s_row]
        t_exp = [math.exp(v / temperature) for v in t_row]
        for c, (s, t) in enumerate(zip(s_exp, t_exp, strict=True)):
            hot = 1.0 if c == label else 0.0
            total += -((t / sum(t_exp) + hot) ** eps - hot) * math.log(s / sum(s_exp))
    return total / len(student)


@pytest.mark.parametrize("eps", [1.0, 1.5])
def test_golden_values_and_gradients(golden, eps):
    for case in golden:
        student = student_logits(case).requires_grad_()
        loss = ofa_loss(student, teacher_logits(case), labels(case), eps=eps)
        loss.backward()
        expected = case["expected"][f"ofa_eps{eps:g}_T1"]
        assert loss.item() == pytest.approx(expected["value"], rel=1e-9)
        assert student.grad.norm().item() == pytest.approx(expected["grad_l2"], rel=1e-9)
        assert student.grad.abs().sum().item() == pytest.approx(expected["grad_sum_abs"], rel=1e-9)


def test_loops_agree():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    target = torch.arange(5) % 7
    for eps, temperature in ((1.0, 1.0), (1.3, 2.0), (2.0, 0.5)):
        expected = slow_ofa(student, teacher, target, eps, temperature)
        assert ofa_loss(student, teacher, target, eps=eps, temperature=temperature).item() == pytest.approx(
            expected, rel=1e-9
        )


def test_gradcheck():
    student, teacher = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    target = torch.arange(4)
    assert torch.autograd.gradcheck(lambda s, t: ofa_loss(s, t, target, eps=1.5), (student, teacher))


def test_exponent_one_is_the_cross_entropy_with_the_teacher():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    expected = F.cross_entropy(student, teacher.softmax(1))
    assert ofa_loss(student, teacher, torch.zeros(5, dtype=torch.long)).item() == pytest.approx(expected.item())


def test_soft_labels_count_by_their_likeliest_class():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    target = torch.arange(5)
    soft = F.one_hot(target, 7).double().lerp(torch.full((5, 7), 1 / 7, dtype=torch.float64), 0.4)
    assert ofa_loss(student, teacher, soft, eps=1.5).item() == ofa_loss(student, teacher, target, eps=1.5).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_gaps_stay_finite(dtype):
    student = torch.tensor([[0.0, 120.0, -120.0]], dtype=dtype, requires_grad=True)
    loss = ofa_loss(student, torch.tensor([[120.0, 0.0, -120.0]], dtype=dtype), torch.tensor([0]), eps=1.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_bad_input_is_named(unchecked_shapes):
    logits, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"eps is 0\.5"):
        ofa_loss(logits, logits, target, eps=0.5)
    with pytest.raises(ValueError, match="temperature is -1"):
        ofa_loss(logits, logits, target, temperature=-1)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        ofa_loss(logits, torch.zeros(2, 4), target)
