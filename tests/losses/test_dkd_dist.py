import math

import pytest
import torch

from crossdistill.losses import dist_loss, dkd_loss, kd_loss
from tests.losses.inputs import labels, student_logits, teacher_logits
from tests.processes import in_two_processes


def softmax(row):
    largest = max(row)
    powers = [math.exp(v - largest) for v in row]
    return [p / sum(powers) for p in powers]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def slow_dkd(student, teacher, target, alpha, beta, temperature):
    total = 0.0
    for s_row, t_row, label in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        s, t = (softmax([v / temperature for v in row]) for row in (s_row, t_row))
        total += alpha * divergence([t[label], 1 - t[label]], [s[label], 1 - s[label]])
        s, t = ([v / (1 - p[label]) for k, v in enumerate(p) if k != label] for p in (s, t))
        total += beta * divergence(t, s)
    return temperature**2 * total / len(student)


def pearson(x, y):
    x, y = ([v - sum(z) / len(z) for v in z] for z in (x, y))
    lengths = math.sqrt(sum(v * v for v in x)) * math.sqrt(sum(v * v for v in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / (lengths + 1e-8)


def slow_dist(student, teacher, beta, gamma, temperature):
    s, t = ([softmax([v / temperature for v in row]) for row in z.tolist()] for z in (student, teacher))
    rows = [pearson(a, b) for a, b in zip(s, t, strict=True)]
    columns = [pearson(a, b) for a, b in zip(zip(*s, strict=True), zip(*t, strict=True), strict=True)]
    inter, intra = sum(rows) / len(rows), sum(columns) / len(columns)
    return temperature**2 * (beta * (1 - inter) + gamma * (1 - intra))


def check_golden(loss, student, expected):
    loss.backward()
    assert loss.item() == pytest.approx(expected["value"], rel=1e-6)
    assert student.grad.norm().item() == pytest.approx(expected["grad_l2"], rel=1e-6)
    assert student.grad.abs().sum().item() == pytest.approx(expected["grad_sum_abs"], rel=1e-6)


def test_golden_values_and_gradients(golden):
    for case in golden:
        for temperature in (1.0, 4.0):
            student = student_logits(case).requires_grad_()
            loss = dkd_loss(student, teacher_logits(case), labels(case), temperature=temperature)
            check_golden(loss, student, case["expected"][f"dkd_a1_b2_T{temperature:g}"])
        for temperature in (1.0, 2.0):
            student = student_logits(case).requires_grad_()
            loss = dist_loss(student, teacher_logits(case), temperature=temperature)
            check_golden(loss, student, case["expected"][f"dist_b1_g1_T{temperature:g}"])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loops_agree(temperature):
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    target = torch.tensor([0, 6, 3, 1, 3])
    ours = dkd_loss(student, teacher, target, alpha=0.7, beta=3.0, temperature=temperature)
    assert ours.item() == pytest.approx(slow_dkd(student, teacher, target, 0.7, 3.0, temperature), rel=1e-9)
    ours = dist_loss(student, teacher, beta=2.0, gamma=0.5, temperature=temperature)
    assert ours.item() == pytest.approx(slow_dist(student, teacher, 2.0, 0.5, temperature), rel=1e-9)


def test_gradcheck():
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 5, dtype=torch.float64)
    target = torch.arange(4)
    assert torch.autograd.gradcheck(lambda s: dkd_loss(s, teacher, target, temperature=2.0), (student,))
    assert torch.autograd.gradcheck(lambda s: dist_loss(s, teacher, temperature=2.0), (student,))


def test_invariances():
    student, teacher = torch.randn(2, 6, 10, dtype=torch.float64)
    target = torch.randint(10, (6,))
    assert dkd_loss(teacher + 3, teacher, target).item() == pytest.approx(0, abs=1e-12)
    assert dist_loss(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-6)
    rows, columns = torch.randperm(6), torch.randperm(10)
    shuffled = student[rows][:, columns], teacher[rows][:, columns]
    place = torch.argsort(columns)[target[rows]]
    assert dkd_loss(*shuffled, place).item() == pytest.approx(dkd_loss(student, teacher, target).item(), rel=1e-12)
    assert dist_loss(*shuffled).item() == pytest.approx(dist_loss(student, teacher).item(), rel=1e-12)


def test_kd_is_dkd_with_the_teachers_doubt_as_weight():
    """KD = TCKD + (1 - p_t of the true class) NCKD, image by image: the paper's eq. 6."""
    student, teacher = torch.randn(2, 1, 8, dtype=torch.float64)
    target = torch.tensor([2])
    doubt = 1 - teacher.softmax(1)[0, 2].item()
    both = dkd_loss(student, teacher, target, alpha=1.0, beta=doubt)
    assert both.item() == pytest.approx(kd_loss(student, teacher).item(), rel=1e-12)


def test_extreme_logits_and_half_precision_stay_finite():
    for gap in (120.0, 60_000.0):
        student = torch.zeros(3, 4, requires_grad=True)
        teacher = torch.zeros(3, 4)
        teacher[:, 0] = gap
        losses = dkd_loss(student, teacher, torch.tensor([0, 1, 2])), dist_loss(student, teacher)
        sum(losses).backward()
        assert all(torch.isfinite(loss) for loss in losses)
        assert torch.isfinite(student.grad).all()
    half = torch.randn(4, 5).half(), torch.randn(4, 5).half()
    assert dist_loss(*half).dtype == torch.float32
    soft = torch.rand(4, 5).softmax(1)
    assert dkd_loss(*half, soft).item() == dkd_loss(*half, soft.argmax(1)).item()


def half_of_the_batch(rank):
    student, teacher = torch.randn(2, 12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    student = student[rank::2].clone().requires_grad_()
    loss = dist_loss(student, teacher[rank::2], beta=0.0)
    loss.backward()
    return loss.item(), student.grad / 2


def test_two_processes_equal_one_with_the_joined_batch():
    student, teacher = torch.randn(2, 12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    student.requires_grad_()
    loss = dist_loss(student, teacher, beta=0.0)
    loss.backward()
    for rank, (value, grad) in enumerate(in_two_processes(half_of_the_batch)):
        assert value == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(grad, student.grad[rank::2], rtol=1e-6, atol=1e-9)


def test_bad_input_is_named(unchecked_shapes):
    for loss in (lambda *a, **k: dkd_loss(*a, torch.zeros(4, dtype=torch.long), **k), dist_loss):
        with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 5\)"):
            loss(torch.zeros(4, 3), torch.zeros(4, 5))
        with pytest.raises(ValueError, match="temperature is 0"):
            loss(torch.zeros(4, 3), torch.zeros(4, 3), temperature=0.0)
