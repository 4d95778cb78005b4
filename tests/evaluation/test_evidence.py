import torch

from crossdistill import BackboneOutput
from crossdistill.evaluation.evidence import class_evidence


def corner(images):
    """Class 1 is brightness in the last quarter of the image, class 0 that of the first."""
    side = images.shape[-1] // 2
    first, last = images[:, 0, :side, :side].mean(dim=(1, 2)), images[:, 0, side:, side:].mean(dim=(1, 2))
    return BackboneOutput(torch.stack([first, last], dim=1), images.flatten(1))


def test_covering_what_a_class_is_read_from_lowers_its_probability():
    image = torch.ones(1, 24, 24)
    found = class_evidence(corner, image, 1, grid=4)
    assert found.shape == (4, 4)
    assert (found[2:, 2:] > 0.01).all()
    assert (found[:2, :2] < -0.01).all()
    assert found[:2, 2:].abs().max() < 1e-6
    other = class_evidence(corner, image, 0, grid=4)
    assert torch.allclose(other, -found, atol=1e-6)


def test_sides_that_the_grid_does_not_divide():
    found = class_evidence(corner, torch.rand(1, 30, 30), 1, grid=7)
    assert found.shape == (7, 7)
    assert torch.isfinite(found).all()
