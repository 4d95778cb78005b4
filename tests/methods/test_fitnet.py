"""FitNet's term for maps of other grids."""

import pytest
import torch
import torch.nn.functional as F

import crossdistill as cd
from crossdistill.types import BackboneOutput


@pytest.mark.parametrize(
    ("ours", "theirs", "grid"),
    [((8, 8), (4, 4), (4, 4)), ((4, 2), (2, 8), (2, 2)), ((2, 8), (4, 2), (2, 2)), ((3, 3), (3, 3), (3, 3))],
)
def test_both_maps_have_the_smaller_number_of_cells_along_each_side(ours, theirs, grid):
    student, teacher = cd.create_backbone("test_vit", 5, 32), cd.create_backbone("test_resnet", 5, 32)
    method = cd.create_distiller("fitnet", student=student, teacher=teacher).method
    outputs = [
        BackboneOutput(None, torch.zeros(2, 1), (*(torch.zeros(2, 1, 1, 1),) * 3, torch.randn(2, channels, *size)))
        for channels, size in ((student.spec.channels(4), ours), (teacher.spec.channels(4), theirs))
    ]
    term = method(*outputs, torch.zeros(2))["fitnet"]
    pooled = [
        F.adaptive_avg_pool2d(one, grid) for one in (method.regressor(outputs[0].stages[3]), outputs[1].stages[3])
    ]
    assert term.item() == pytest.approx((pooled[0] - pooled[1]).square().mean().item(), rel=1e-6)
