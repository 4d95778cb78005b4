"""Where the runs of a comparison lie, beside those of earlier commands."""

import pytest
import yaml

from crossdistill import UserError
from crossdistill.config import RunConfig
from crossdistill.config.files import to_dict
from crossdistill.training.grid import Axes, Student, Variant, make_cells
from crossdistill.training.places import placed, teacher_folder

KD, NONE = Variant("kd", "kd", {}), Variant("none", "none", {})


def store(out, name, **settings):
    (out / name).mkdir(parents=True)
    (out / name / "config.yaml").write_text(yaml.safe_dump(to_dict(RunConfig(**settings))))


def folders(out, axes, **settings):
    return [cell.folder for cell in placed(make_cells(RunConfig(**settings), axes), out)]


@pytest.fixture
def out(tmp_path):
    """What `--student test_resnet --teacher test_vit2 --methods none,kd` has left."""
    store(tmp_path, "teacher", student="test_vit2", role="teacher", method="none")
    store(tmp_path, "none-s0", student="test_resnet", method="none", teacher="test_vit2")
    store(tmp_path, "kd-s0", student="test_resnet", method="kd", teacher_checkpoint=str(tmp_path / "teacher"))
    return tmp_path


def test_the_same_command_finds_its_runs(out):
    assert folders(out, Axes([NONE, KD], [0, 1]), student="test_resnet", teacher="test_vit2") == [
        "none-s0", "kd-s0", "none-s1", "kd-s1",
    ]  # fmt: skip


def test_a_list_finds_the_runs_of_one(out):
    students = [Student(name, name, {}) for name in ("test_resnet", "test_vit")]
    found = folders(out, Axes([NONE, KD], [0], students, ["test_vit2", "test_convnext"]))
    assert found[:3] == ["none-s0", "kd-s0", "test_resnet--test_convnext--kd-s0"]
    assert found[3:] == ["test_vit--none-s0", "test_vit--test_vit2--kd-s0", "test_vit--test_convnext--kd-s0"]


def test_new_runs_beside_those_of_other_models_have_the_names_of_their_own(out):
    assert folders(out, Axes([NONE, KD], [1]), student="test_vit", teacher="test_convnext") == [
        "test_vit--none-s1", "test_vit--test_convnext--kd-s1",
    ]  # fmt: skip


def test_a_student_with_other_arguments_is_another_student(out):
    students = [Student("test_resnet{stem_type=deep}", "test_resnet", {"stem_type": "deep"})]
    assert folders(out, Axes([NONE], [0], students)) == ["test_resnet_stem_type=deep--none-s0"]


def test_a_teacher_with_the_name_of_a_student(out):
    taught = dict(student="test_resnet", method="kd", teacher_checkpoint=str(out / "teacher"))
    store(out, "test_resnet--kd-s1", seed=1, **taught)
    axes = Axes([KD], [1], teachers=["test_resnet", "test_vit2"])
    assert folders(out, axes, student="test_resnet") == ["test_resnet--test_resnet--kd-s1", "test_resnet--kd-s1"]


def test_one_teacher_by_its_name_and_by_its_folder_is_refused(out):
    with pytest.raises(UserError, match=r"'test_vit2  kd' and 'teacher  kd' are one run, in .*kd-s0"):
        folders(out, Axes([KD], [0], teachers=["test_vit2", str(out / "teacher")]), student="test_resnet")


def test_a_damaged_teacher_is_named_and_not_trained_again(out):
    (out / "teacher" / "config.yaml").write_text("{")
    (cell,) = make_cells(RunConfig(teacher="test_vit2"), Axes([KD], [0]))
    with pytest.raises(UserError, match=r"teacher/config\.yaml"):
        teacher_folder(cell, out)


def test_a_plain_student_has_the_teacher_of_the_others_in_its_settings(tmp_path):
    """What is decided by a teacher's size, as how images are read, is the same for all methods."""
    none, kd, _ = make_cells(RunConfig(), Axes([NONE, KD], [0], teachers=["test_vit2", "test_convnext"]))
    assert none.config.teacher == kd.config.teacher == "test_vit2"
