"""RKD and CC: relations between the rows of a batch."""

import math
from itertools import pairwise

import pytest
import torch

from crossdistill.losses import cc_loss, rkd_angle_loss, rkd_distance_loss
from tests.losses.inputs import grid, student_embedding, teacher_embedding
from tests.processes import in_two_processes


def check_golden(loss, student, expected):
    loss.backward()
    assert loss.item() == pytest.approx(expected["value"], rel=1e-9)
    assert student.grad.norm().item() == pytest.approx(expected["grad_l2"], rel=1e-9)
    assert student.grad.abs().sum().item() == pytest.approx(expected["grad_sum_abs"], rel=1e-9)


def test_golden_values_and_gradients(golden):
    for case in golden:
        for name, loss in (("rkd_distance", rkd_distance_loss), ("rkd_angle", rkd_angle_loss)):
            student = grid(case["batch"], case["student_dim"], 0.37, 0.59, 0.05 + 0.1 * case["seed"], 1)
            student.requires_grad_()
            check_golden(loss(student, teacher_embedding(case)), student, case["expected"][name])
        student = student_embedding(case).requires_grad_()
        check_golden(cc_loss(student, teacher_embedding(case)), student, case["expected"]["cc_scale0.02"])


def smooth_l1(pairs):
    values = [abs(a - b) for a, b in pairs]
    return sum(0.5 * v * v if v < 1 else v - 0.5 for v in values) / len(values)


def slow_distances(rows):
    distances = [math.dist(a, b) for a in rows for b in rows]
    positive = [d for d in distances if d > 0]
    return [d / (sum(positive) / len(positive)) for d in distances]


def slow_cosines(rows):
    found = []
    for vertex in rows:
        for a in rows:
            for b in rows:
                u, v = ([x - y for x, y in zip(end, vertex, strict=True)] for end in (a, b))
                lengths = math.hypot(*u) * math.hypot(*v)
                found.append(sum(x * y for x, y in zip(u, v, strict=True)) / lengths if lengths else 0.0)
    return found


def slow_cc(student, teacher, scale):
    rows = [[abs(a - b) for a, b in zip(s, t, strict=True)] for s, t in zip(student, teacher, strict=True)]
    pairs = [sum(a * b for a, b in zip(*two, strict=True)) for two in pairwise(rows)]
    return scale * sum(pairs) / len(pairs)


def test_loops_agree():
    student, teacher = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    for loss, slow in ((rkd_distance_loss, slow_distances), (rkd_angle_loss, slow_cosines)):
        expected = smooth_l1(list(zip(slow(student.tolist()), slow(teacher.tolist()), strict=True)))
        assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    teacher = teacher[:, :3]
    assert cc_loss(student, teacher, scale=0.3).item() == pytest.approx(
        slow_cc(student.tolist(), teacher.tolist(), 0.3), rel=1e-9
    )


def test_gradcheck():
    student = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 3, dtype=torch.float64)
    for loss in (rkd_distance_loss, rkd_angle_loss, cc_loss):
        assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, teacher), (student,))


def test_rotation_shift_and_scale_do_not_change_relations():
    student, teacher = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    for loss in (rkd_distance_loss, rkd_angle_loss):
        expected = loss(student, teacher).item()
        assert loss(3 * student @ rotation + 2, teacher).item() == pytest.approx(expected, rel=1e-9)
        assert loss(student, student).item() == 0


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("rows", ["all equal", "two equal", "one"])
def test_equal_embeddings_are_finite(rows, offset):
    """A collapsed batch: a mean over nothing, and roots and directions of zero."""
    student = torch.randn(6, 4) + offset
    if rows == "all equal":
        student = student[:1].expand(6, 4)
    elif rows == "two equal":
        student[1] = student[0]
    else:
        student = student[:1]
    student = student.clone().requires_grad_()
    teacher = torch.randn(len(student), 5)
    loss = rkd_distance_loss(student, teacher) + rkd_angle_loss(student, teacher) + cc_loss(student, teacher[:, :4])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_half_precision_is_computed_in_full():
    student, teacher = 200 * torch.randn(6, 4), 200 * torch.randn(6, 4)
    for loss in (rkd_distance_loss, rkd_angle_loss, cc_loss):
        half = loss(student.half(), teacher.half())
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(loss(student, teacher).item(), rel=2e-2)


def _rows():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 8, 5, dtype=torch.float64, generator=generator)


def _half(rank, name):
    student, teacher = (rows[rank * 4 : rank * 4 + 4].clone() for rows in _rows())
    student.requires_grad_()
    loss = LOSSES[name](student, teacher)
    loss.backward()
    return loss.detach(), student.grad / 2


LOSSES = {"distance": rkd_distance_loss, "angle": rkd_angle_loss, "cc": cc_loss}


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_equal_one_with_the_joined_batch(name):
    student, teacher = _rows()
    student = student.clone().requires_grad_()
    loss = LOSSES[name](student, teacher)
    loss.backward()
    results = in_two_processes(_half, name)
    assert sum(float(value) for value, _ in results) / 2 == pytest.approx(loss.item(), rel=1e-9)
    for rank, (_, grad) in enumerate(results):
        torch.testing.assert_close(grad, student.grad[rank * 4 : rank * 4 + 4])


def test_bad_input_is_named(unchecked_shapes):
    for loss in (rkd_distance_loss, rkd_angle_loss, cc_loss):
        with pytest.raises(ValueError, match=r"\(4, 3\).*\(5, 3\)"):
            loss(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 5\)"):
        cc_loss(torch.zeros(4, 3), torch.zeros(4, 5))


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
def test_nearly_equal_rows_do_not_explode(loss):
    student, teacher = torch.randn(8, 16), torch.randn(8, 16)
    student[1] = student[0]
    student[2] = student[3] + 1e-7
    student.requires_grad_()
    loss(student, teacher).backward()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize("loss", [rkd_distance_loss, rkd_angle_loss])
@pytest.mark.parametrize("shift", [500.0, 1e4])
def test_a_large_common_part_does_not_cost_precision(loss, shift):
    student, teacher = torch.randn(8, 16), torch.randn(8, 16)
    expected = loss(student.double(), teacher.double()).item()
    assert loss(student + shift, teacher).item() == pytest.approx(expected, rel=2e-3)
