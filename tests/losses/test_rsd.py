import math

import pytest
import torch

import crossdistill as cd
from crossdistill.losses import rsd_loss
from crossdistill.methods.projectors import Decoupler
from tests.losses.inputs import student_embedding, student_logits, teacher_embedding, teacher_logits
from tests.processes import in_two_processes


def slow_rsd(student, teacher, kappa):
    def standardised(rows):
        columns = []
        for column in zip(*rows, strict=True):
            mean = sum(column) / len(column)
            std = math.sqrt(sum((v - mean) ** 2 for v in column) / len(column))
            columns.append([(v - mean) / (std + 1e-5) for v in column])
        return columns

    ours, theirs = standardised(student.tolist()), standardised(teacher.tolist())
    total = 0.0
    for i, t in enumerate(theirs):
        for j, s in enumerate(ours):
            p = sum(a * b for a, b in zip(t, s, strict=True)) / len(student)
            total += (p - 1) ** 2 if i == j else kappa * p**2
    return total


def check_golden(loss, student, expected):
    loss.backward()
    assert loss.item() == pytest.approx(expected["value"], rel=1e-9)
    assert student.grad.norm().item() == pytest.approx(expected["grad_l2"], rel=1e-9)
    assert student.grad.abs().sum().item() == pytest.approx(expected["grad_sum_abs"], rel=1e-9)


def test_golden_values_and_gradients(golden):
    checked = 0
    for case in golden:
        for name, expected in case["expected"].items():
            kind, _, kappa = name.rpartition("_kappa")
            if kind == "rsd":
                student, teacher = student_embedding(case), teacher_embedding(case)
            elif kind == "rsd_logits":
                student, teacher = student_logits(case), teacher_logits(case)
            else:
                continue
            student.requires_grad_()
            check_golden(rsd_loss(student, teacher, kappa=float(kappa)), student, expected)
            checked += 1
    assert checked >= 4 * len(golden)


# More images than dimensions and fewer: the two ways of summing the squares.
@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (2, 12), (6, 6)])
@pytest.mark.parametrize("kappa", [0.0, 0.01, 1.0])
def test_loops_agree(kappa, shape):
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    assert rsd_loss(student, teacher, kappa=kappa).item() == pytest.approx(slow_rsd(student, teacher, kappa), rel=1e-9)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
@pytest.mark.parametrize("kappa", [0.0, 0.3])
def test_gradcheck(kappa, shape):
    student = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: rsd_loss(s, t, kappa=kappa), (student, teacher))


@pytest.mark.parametrize("own_logits", [None, True, False])
def test_on_stages_sums_the_exits_and_the_own_logits(own_logits):
    options = {"on": "stages", "stages": [2, 4], "kappa": 0.1}
    options |= {} if own_logits is None else {"own_logits": own_logits}
    student, teacher = cd.create_backbone("test_resnet", 5, 32), cd.create_backbone("test_vit", 5, 32)
    distiller = cd.create_distiller("rsd", student=student, teacher=teacher, options=options).double().eval()
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = student(images, stages=True), distiller.teacher(images)
        followers = distiller.method.exits(ours.stages)
        assert len(followers) == 2
        followers += [] if own_logits is False else [ours.logits]
        got = distiller(images, torch.arange(6) % 5).terms["rsd"]
    expected = sum(slow_rsd(logits, theirs.logits, 0.1) for logits in followers)
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_scale_and_shift_of_a_column_do_not_matter():
    student, teacher = torch.randn(2, 32, 6, dtype=torch.float64)
    scale, shift = torch.rand(6, dtype=torch.float64) + 0.5, torch.randn(6, dtype=torch.float64)
    before = rsd_loss(student, teacher, kappa=0.1)
    assert rsd_loss(student * scale + shift, teacher, kappa=0.1).item() == pytest.approx(before.item(), rel=1e-3)
    assert rsd_loss(student, teacher * scale + shift, kappa=0.1).item() == pytest.approx(before.item(), rel=1e-3)


def test_order_of_images_and_dimensions_does_not_matter():
    student, teacher = torch.randn(2, 12, 6, dtype=torch.float64)
    rows, columns = torch.randperm(12), torch.randperm(6)
    assert rsd_loss(student[rows][:, columns], teacher[rows][:, columns]).item() == pytest.approx(
        rsd_loss(student, teacher).item(), rel=1e-12
    )


def test_teacher_itself_leaves_only_its_own_redundancy():
    noise = torch.randn(64, 6, dtype=torch.float64)
    uncorrelated = torch.linalg.qr(noise - noise.mean(dim=0))[0]
    assert rsd_loss(uncorrelated, uncorrelated, kappa=1.0).item() == pytest.approx(0, abs=1e-5)
    redundant = torch.randn(64, 1, dtype=torch.float64).expand(64, 6)
    assert rsd_loss(redundant, redundant, kappa=1.0).item() == pytest.approx(30, rel=1e-3)


def test_dead_column_and_single_image_give_no_nan():
    for student in (torch.cat([torch.randn(8, 3), torch.zeros(8, 1)], dim=1), torch.randn(1, 4)):
        student.requires_grad_()
        loss = rsd_loss(student, torch.randn(len(student), 4))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(student.grad).all()


def test_bf16_autocast_computes_in_float32():
    student, teacher = torch.randn(2, 64, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = rsd_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(rsd_loss(student, teacher).item(), rel=1e-6)


def test_bad_input_is_named(unchecked_shapes):
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 5\)"):
        rsd_loss(torch.zeros(4, 3), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="kappa is -1"):
        rsd_loss(torch.zeros(4, 3), torch.zeros(4, 3), kappa=-1)


def _batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 12, 8, dtype=torch.float64, generator=generator)


def test_few_images_of_many_dimensions_stay_exact_in_float32():
    student, teacher = torch.randn(2, 8, 512, dtype=torch.float64)
    exact = rsd_loss(student, teacher, kappa=0.01).item()
    assert rsd_loss(student.float(), teacher.float(), kappa=0.01).item() == pytest.approx(exact, rel=1e-5)


def _decoupled_loss(student, teacher, kappa):
    torch.manual_seed(3)
    decoupler = Decoupler(8, 8).double()
    loss = rsd_loss(decoupler(student), teacher, kappa=kappa)
    loss.backward()
    return loss, decoupler


def _half_of_the_batch(rank, kappa):
    student, teacher = _batch()
    student = student[rank::2].clone().requires_grad_()
    loss, decoupler = _decoupled_loss(student, teacher[rank::2], kappa)
    # As DDP does: the mean over processes.
    parameters = [p.grad for p in decoupler.parameters()]
    for grad in parameters:
        torch.distributed.all_reduce(grad)
        grad /= 2
    state = [decoupler.norm.running_mean, decoupler.norm.running_var]
    return loss.item(), student.grad / 2, parameters, state


@pytest.mark.parametrize("kappa", [0.0, 0.01])
def test_two_processes_equal_one_with_the_joined_batch(kappa):
    student, teacher = _batch()
    student.requires_grad_()
    loss, decoupler = _decoupled_loss(student, teacher, kappa)
    for rank, (value, grad, parameters, state) in enumerate(in_two_processes(_half_of_the_batch, kappa)):
        assert value == pytest.approx(loss.item(), rel=1e-9)
        torch.testing.assert_close(grad, student.grad[rank::2], rtol=1e-6, atol=1e-9)
        for ours, p in zip(parameters, decoupler.parameters(), strict=True):
            torch.testing.assert_close(ours, p.grad, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(state[0], decoupler.norm.running_mean, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(state[1], decoupler.norm.running_var, rtol=1e-6, atol=1e-9)


def test_arguments_by_name_and_of_two_precisions():
    student, teacher = torch.randn(2, 16, 4, dtype=torch.float64)
    expected = rsd_loss(student, teacher)
    assert rsd_loss(student=student, teacher=teacher, kappa=0.01).item() == expected.item()
    mixed = rsd_loss(student.float(), teacher)
    assert mixed.dtype == torch.float64
    assert mixed.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("width", "kappa"), [(64, 0.01), (100, 0.01), (250, 0.004)])
def test_the_default_kappa_falls_with_the_width(width, kappa):
    student = cd.create_backbone("test_vit", 5, 32, patch_size=8)
    teacher = cd.create_backbone("test_resnet", 5, 32, channels=[32, 48, 48, width])
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(16, d, generator=generator) for d in (64, width))
    losses = []
    for options in ({}, {"kappa": kappa}):
        torch.manual_seed(0)
        method = cd.create_distiller("rsd", student=student, teacher=teacher, options=options).method
        outputs = (cd.BackboneOutput(None, one) for one in (ours, theirs))
        losses.append(method(*outputs, torch.zeros(16))["rsd"].item())
    assert losses[0] == losses[1]
