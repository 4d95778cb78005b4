import os
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from crossdistill import UserError
from crossdistill.config import OptimConfig, RunConfig
from crossdistill.config.files import from_dict, read_yaml, recipe_path, to_dict, with_changes


def test_changes_by_dotted_name():
    config = RunConfig(optim=OptimConfig(lr=0.1, weight_decay=0.2))
    changes = {"epochs": 7, "optim.lr": 1, "optim.name": "sgd", "loader.max_train": None, "model.student_args.depth": 3}
    changed = with_changes(config, changes, "here: ")
    assert (changed.epochs, changed.optim.lr, changed.optim.name, changed.optim.weight_decay) == (7, 1.0, "sgd", 0.2)
    assert changed.loader.max_train is None
    assert changed.model.student_args == {"depth": 3}
    assert with_changes(config, {"augment.scale": [0.2, 1.0]}, "").augment.scale == (0.2, 1.0)
    assert config.epochs == RunConfig().epochs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "here: unknown setting 'epoch'; did you mean 'epochs'"),
        ({"optim.lrr": 3}, r"here: unknown setting 'optim.lrr'; did you mean 'optim.lr'"),
        ({"epochs": "ten"}, "here: epochs is 'ten'; it must be a whole number"),
        ({"optim.lr": "3"}, "optim.lr is '3'; it must be a number"),
        ({"optim": 3}, "optim is 3; it must be a group of settings"),
        ({"epochs.x": 3}, "epochs is not a group of settings"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_wrong_changes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        with_changes(RunConfig(), changes, "here: ")


def test_plain_data_holds_every_setting_and_comes_back_equal():
    config = RunConfig(teacher=["a", "b"], options={"rsd": {"stages": [1, 2]}}, optim=OptimConfig(lr=3e-5))
    plain = to_dict(config)
    assert set(plain) == set(RunConfig.__dataclass_fields__)
    assert from_dict(yaml.safe_load(yaml.safe_dump(plain)), "") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: null", "epochs is None; it must be a whole number"),
        ("engine: null", "engine is None; it must be a group of settings"),
        ("engine: {devices: null}", "engine.devices is None"),
        ("model: {stem: null}", "model.stem is None; it must be 'auto', 'native' or 'small'"),
        ("augment: {scale: null}", "augment.scale is None; it must be a list"),
        ("teacher_training: {optim: {lr: 3}}", "teacher_training.optim is {'lr': 3}; it must be"),
        ("loader: {val_fraction: .nan}", "loader.val_fraction is nan"),
        ("method: null", "method is None; it must be text"),
        ("{student: null, method: null}", "student is None; it must be text"),
        ("optim: {lr: null, name: null}", "optim.name is None; it must be text"),
        ("engine: {threads: 100000}", "engine.threads is 100000; it must be less than or equal to 1024"),
        ("optim: {lr: 1e400}", "optim.lr is inf"),
        ("epochs: [", "cannot be read as YAML"),
        ("options: &a {kd: *a}", "an anchor contains itself"),
        (
            "a: &a [1, 2]\n" + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in pairwise("abcdefghi")),
            "anchors",
        ),
        ("- 1", "holds list; it must hold settings"),
        ("optim: {lrr: 1}", r"in '.*r\.yaml': unknown setting 'optim.lrr'; did you mean 'optim.lr'"),
    ],
)
def test_wrong_files_are_answered_in_a_line(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as refused:
        from_dict(read_yaml(path), f"in {str(path)!r}: ")
    assert "\n" not in str(refused.value)


def test_what_people_write_is_understood(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("cache: off\nengine: {precision: 32}\noptim: {lr: 1e-3}\n")
    config = from_dict(read_yaml(path), "")
    assert (config.cached, config.engine.precision, config.optim.lr) == (False, "32", 1e-3)
    path.write_text("")
    assert from_dict(read_yaml(path), "") == RunConfig()


def test_paths_that_begin_with_a_dot_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    path = tmp_path / "runs" / "a" / "config.yaml"
    path.write_text("teacher_checkpoint: ../teacher\ndata: photos\nloader: {root: ./sets}\ncache: ../cache\n")
    values = read_yaml(path)
    assert values["teacher_checkpoint"] == str(tmp_path / "runs" / "teacher")
    assert values["cache"] == str(tmp_path / "runs" / "cache")
    assert values["loader"]["root"] == str(tmp_path / "runs" / "a" / "sets")
    assert values["data"] == "photos"
    path.write_text("teacher_checkpoint: [../one, /abs/two]\n")
    assert read_yaml(path)["teacher_checkpoint"] == [str(tmp_path / "runs" / "one"), "/abs/two"]


def test_recipes_by_name_and_file(tmp_path):
    assert recipe_path("demo").name == "demo.yaml"
    (tmp_path / "mine.yaml").write_text("epochs: 3")
    assert recipe_path(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(UserError, match="did you mean 'demo'"):
        recipe_path("dmo")


@pytest.mark.parametrize("name", sorted(path.stem for path in recipe_path("demo").parent.glob("*.yaml")))
def test_every_recipe_builds_its_pair(name):
    from crossdistill.backbones.build import outline
    from crossdistill.config.teacher import teacher_config
    from crossdistill.methods import choose_method, options_for
    from crossdistill.training.checks import check_settings

    config = from_dict(read_yaml(recipe_path(name)), "")
    check_settings(config)
    check_settings(teacher_config(config))
    assert teacher_config(config).student == config.teacher
    for method, options in config.options.items():
        choose_method(method, options)
    model, small = config.model, config.model.stem == "small"
    student = outline(config.student, 100, config.img_size, small_images=small, **model.student_args)
    teacher = outline(config.teacher, 100, config.img_size, small_images=small, **model.teacher_args)
    assert choose_method("rsd", options_for("rsd", config.options)).build(student, teacher) is not None


def test_recipes_name_no_path_of_this_machine():
    for path in recipe_path("demo").parent.glob("*.yaml"):
        assert os.sep + "work" not in Path(path).read_text()
