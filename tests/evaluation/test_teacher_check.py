from types import SimpleNamespace

import pytest
import torch

from crossdistill import UserError, create_backbone, load_backbone
from crossdistill.config import AugmentConfig, LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.transforms import eval_transform
from crossdistill.evaluation.teacher_check import check_teacher
from crossdistill.teacher import Teacher
from crossdistill.types import BackboneOutput


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
    assert check_teacher(Teacher(backbone, backbone.spec), batches).accuracy > 0.85


def test_another_class_order_is_recognised(look):
    backbone, batches = look
    order = torch.roll(torch.arange(10), 3)
    with torch.no_grad():
        backbone.model.fc.weight.copy_(backbone.model.fc.weight[order])
        backbone.model.fc.bias.copy_(backbone.model.fc.bias[order])
    with pytest.raises(UserError, match="classes seem to be in another order"):
        check_teacher(Teacher(backbone, backbone.spec), batches)
    assert check_teacher(Teacher(backbone, backbone.spec), batches, trust=True).accuracy < 0.3


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


def made_up(predicted, targets, classes, certain=5.0):
    """A teacher that gives these answers: the images are their numbers, and so are the logits."""
    logits = certain * torch.nn.functional.one_hot(torch.as_tensor(predicted), classes).float()

    class Told(torch.nn.Module):
        scale = torch.zeros(1)
        backbone = None

        def prepare(self, images):
            return images

    told = Told()
    told.backbone = lambda images: BackboneOutput(logits[images.long()], images)
    told.backbone.spec = SimpleNamespace(in_chans=1, name="told")
    return told, [(torch.arange(len(targets)), torch.as_tensor(targets))]


def answers(labels, wrong):
    """Right answers, of which those at these places are exchanged for the next class."""
    return [(label + 1) % (max(labels) + 1) if place in wrong else label for place, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        ([0, 1] * 12, range(4)),
        ([0] * 49 + [1] * 5, (0, 1, 50, 51)),
        ([0] * 95 + [1] * 5, (0, 95)),
        ([0, 1, 2] * 5, (0, 4, 8)),
        (list(range(100)) * 5, range(300)),
    ],
)
def test_good_teachers_on_small_noisy_or_unbalanced_data_are_taken(labels, wrong):
    teacher, batches = made_up(answers(labels, wrong), labels, max(labels) + 1)
    assert check_teacher(teacher, batches).accuracy == pytest.approx(1 - len(wrong) / len(labels))


@pytest.mark.parametrize(
    ("predicted", "labels"),
    [
        ([0] * 100, [0] * 90 + [1] * 10),
        ([0, 1] * 20, [0, 0, 1, 1] * 10),
        ([0] * 90 + [1] * 10, [1] * 9 + [0] * 90 + [1]),
        (torch.randint(10, (126,), generator=torch.Generator().manual_seed(0)).tolist(), [k % 10 for k in range(126)]),
    ],
)
def test_teachers_whose_answers_have_nothing_to_do_with_the_images_are_refused(predicted, labels):
    teacher, batches = made_up(predicted, labels, max(labels) + 1)
    with pytest.raises(
        UserError, match=r"chance is .*: answers that have nothing to do with the images, .*fine-tune it"
    ):
        check_teacher(teacher, batches)
    assert check_teacher(teacher, batches, trust=True).accuracy >= 0


def test_too_few_images_to_tell_are_said():
    teacher, batches = made_up([0, 1, 0, 1], [0, 1, 0, 1], 2)
    found = check_teacher(teacher, batches)
    assert found.accuracy == 1
    assert found.notes == ("4 held-out images are too few to tell whether it has learned",)


def test_two_exchanged_classes_of_a_good_teacher_are_said():
    labels = [k % 10 for k in range(400)]
    exchanged = {3: 5, 5: 3}
    teacher, batches = made_up([exchanged.get(k, k) for k in labels], labels, 10)
    found = check_teacher(teacher, batches, class_names="abcdefghij")
    assert found.accuracy == pytest.approx(0.8)
    assert "it answers 'd' for 'f', 'f' for 'd' (after renaming " in found.notes[0]
    assert "more and 0 fewer of 200 images are right)" in found.notes[0]
    noisy = answers(labels, range(0, 400, 5))
    assert check_teacher(*made_up(noisy, labels, 10)).notes == ()


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
