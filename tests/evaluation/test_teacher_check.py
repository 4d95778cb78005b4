import pytest
import torch

from crossdistill import UserError, create_backbone, load_backbone
from crossdistill.config import AugmentConfig, LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.transforms import eval_transform
from crossdistill.evaluation.teacher_check import check_teacher
from crossdistill.teacher import Teacher


@pytest.fixture
def look(teacher_run):
    """The trained teacher, and the batches that its check sees."""
    backbone = load_backbone(teacher_run)
    data = load_data("digits", LoaderConfig())
    transform = eval_transform(AugmentConfig(), backbone.spec, 32)
    images = torch.stack([transform(data.test.read(i)) for i in range(400)])
    return backbone, list(zip(images.split(100), torch.tensor(data.test.labels[:400]).split(100), strict=True))


def test_a_good_teacher_is_measured(look):
    backbone, batches = look
    assert check_teacher(Teacher(backbone, backbone.spec), batches) > 0.85


def test_another_class_order_is_recognised(look):
    backbone, batches = look
    order = torch.roll(torch.arange(10), 3)
    with torch.no_grad():
        backbone.model.fc.weight.copy_(backbone.model.fc.weight[order])
        backbone.model.fc.bias.copy_(backbone.model.fc.bias[order])
    with pytest.raises(UserError, match="classes seem to be in another order"):
        check_teacher(Teacher(backbone, backbone.spec), batches)
    assert check_teacher(Teacher(backbone, backbone.spec), batches, trust=True) < 0.3


def test_a_fresh_head_is_recognised(look):
    backbone, batches = look
    with torch.no_grad():
        backbone.model.fc.weight.mul_(1e-3)
        backbone.model.fc.bias.zero_()
        backbone.model.fc.weight.copy_(1e-3 * torch.randn_like(backbone.model.fc.weight))
    with pytest.raises(UserError, match="classifier appears untrained"):
        check_teacher(Teacher(backbone, backbone.spec), batches)


def test_a_wrong_normalisation_is_recognised(look):
    _, batches = look
    # A teacher that answers rightly only for mean and std 0.5, and claims to want pixels times 255.
    backbone = create_backbone("tests.evaluation.test_teacher_check:Brightness", 2, 32)
    dark, bright = torch.full((40, 3, 32, 32), 0.2), torch.full((40, 3, 32, 32), 0.8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.spec.mean, backbone.spec.std))
    pixels = (torch.cat([dark, bright]) - mean) / std
    batches = [(pixels, torch.cat([torch.zeros(40), torch.ones(40)]).long())]
    with pytest.raises(UserError, match=r"input normalisation is wrong; with mean and std 0\.5 its accuracy is 100%"):
        check_teacher(Teacher(backbone, backbone.spec), batches)


class Brightness(torch.nn.Module):
    """Class 1 where the mean input lies in (0, 1), else class 0: pixels 0.8 at mean and std 0.5 give 0.6."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(1, num_classes)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0], [10.0]]))
            self.head.bias.copy_(torch.tensor([5.0, 0.0]))

    def forward(self, x):
        level = x.mean(dim=(1, 2, 3)).unsqueeze(1)
        return self.head(((level > 0) & (level < 1)).float())
