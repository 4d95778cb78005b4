"""The classes of a student that is trained without labels come from its teachers."""

import re
from dataclasses import replace

import pytest
from safetensors.torch import save_model

import crossdistill as cd
from crossdistill.data import load_data
from crossdistill.errors import UserError
from crossdistill.methods import choose_method
from crossdistill.training.models import build_models, initial_models


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of one network with 5 classes, and with 10."""
    folder = tmp_path_factory.mktemp("weights")
    for classes in (5, 10):
        save_model(cd.create_backbone("test_resnet", classes, 32, in_chans=1).model, folder / f"{classes}.safetensors")
    return folder


def without_labels(quick, weights, teachers):
    files = [str(weights / f"{classes}.safetensors") for classes in teachers]
    loader = replace(quick.loader, labels="none")
    config = replace(quick, teacher=["test_resnet"] * len(files), teacher_checkpoint=files, loader=loader)
    return config, load_data(config.data, loader, None)


@pytest.mark.parametrize(
    ("method", "teachers", "classes"),
    [("kd", [10, 10], 10), ("kd", [5], 5), ("rsd", [10, 10], 0), ("rsd", [5, 10], 0)],
)
def test_the_classes_of_a_student_without_labels(quick, weights, method, teachers, classes):
    config, data = without_labels(quick, weights, teachers)
    student, built = initial_models(config, choose_method(method).needs, data)
    assert [teacher.spec.num_classes for teacher in built] == teachers
    assert student.spec.num_classes == classes


def test_teachers_of_different_classes_are_refused_where_logits_are_read(quick, weights):
    config, data = without_labels(quick, weights, [5, 10])
    words = "'test_resnet' has 5 classes and 'test_resnet' has 10 classes: use a method that reads no logits (auto, cc,"
    with pytest.raises(UserError, match=re.escape(words)):
        build_models(config, choose_method("kd"), data)


def test_a_teacher_whose_classes_are_not_known_is_refused(quick, weights):
    config, data = without_labels(quick, weights, [5])
    config = replace(config, teacher="tests.backbones.own_head:Small", teacher_checkpoint=None)
    with pytest.raises(UserError, match=r"how many classes .* is not known: give --model.teacher-classes"):
        build_models(config, choose_method("rsd"), data)
