import pytest
import torch

from crossdistill.losses import fitnet_loss


def test_loops_agree():
    student, teacher = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    expected = sum((a - b) ** 2 for a, b in pairs) / student.numel()
    assert fitnet_loss(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_gradcheck():
    student = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: fitnet_loss(s, teacher), (student,))


def test_zero_for_equal_maps_and_full_precision_for_half():
    maps = 300 * torch.randn(2, 3, 2, 2)
    assert fitnet_loss(maps, maps).item() == 0
    half = fitnet_loss(maps.half(), -maps.half())
    assert half.dtype == torch.float32
    assert torch.isfinite(half)


def test_bad_input_is_named(unchecked_shapes):
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 2\).*\(2, 3, 4, 4\)"):
        fitnet_loss(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 4, 4))
