import pytest
import torch

import crossdistill as cd
from tests.pairs import build


def make(method, classes=5, student_classes=5):
    torch.manual_seed(0)
    teacher = build("plain_vit", classes)
    student = build("cnn", student_classes)
    torch.manual_seed(1)
    return cd.create_distiller(method, student=student, teacher=teacher, balance="auto")


def test_with_the_same_classes_it_is_the_sum():
    images, targets = torch.randn(6, 3, 32, 32), torch.arange(6) % 5
    auto, named = make("auto"), make("rsd+kd")
    assert auto.needs == named.needs
    one, other = auto(images, targets), named(images, targets)
    assert one.terms.keys() == other.terms.keys()
    assert torch.equal(one.loss, other.loss)


def test_with_other_classes_or_none_it_reads_embeddings():
    for classes in (0, 7):
        distiller = make("auto", classes)
        assert list(distiller.method.parts) == ["rsd"]
        assert not distiller.needs.teacher.logits


def test_without_classes_on_either_side_it_reads_embeddings():
    student, teacher = build("cnn", 0), build("plain_vit", 0)
    distiller = cd.create_distiller("auto", student=student, teacher=teacher, labelled=False)
    assert list(distiller.method.parts) == ["rsd"]
    assert list(distiller(torch.randn(4, 3, 32, 32), None).terms) == ["task", "rsd"]


def test_classes_are_compared_by_their_names():
    """As many classes as the student's, but others, or in another order: the embedding alone is read."""
    for names, parts in ((None, 2), (tuple("abcde"), 2), (tuple("vwxyz"), 1), (tuple("bacde"), 1)):
        student, teacher = build("cnn"), build("plain_vit")
        student.class_names, teacher.class_names = tuple("abcde"), names
        both = [teacher, build("mlp")]
        for teachers in (teacher, both):
            distiller = cd.create_distiller("auto", student=student, teacher=teachers)
            assert len(distiller.method.groups()) == parts, names
            if parts == 1:
                with pytest.raises(cd.UserError, match="'test_vit' knows other classes than the student: "):
                    cd.create_distiller("kd", student=student, teacher=teachers)
