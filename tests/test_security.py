"""Code that is named by a file is not imported unless the user trusts it."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import yaml

from crossdistill import UserError, load_backbone
from crossdistill.training.fit import fit
from tests.commands.running import TINY, run

NAME = "tests.danger:build"


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that importing the code leaves."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.delitem(sys.modules, "tests.danger", raising=False)
    return tmp_path / "mark"


@pytest.fixture(scope="module")
def finished(quick, silent, tmp_path_factory):
    return fit(replace(quick, method="none", epochs=1, out=str(tmp_path_factory.mktemp("run") / "run")), console=silent)


@pytest.fixture
def strange(finished, tmp_path):
    """A finished run whose config.json names code."""
    shutil.copytree(finished, tmp_path / "strange")
    path = tmp_path / "strange" / "config.json"
    stored = json.loads(path.read_text())
    stored["crossdistill"] |= {"name": NAME, "model_args": {}}
    path.write_text(json.dumps(stored))
    return tmp_path / "strange"


def test_a_model_that_a_file_names_is_not_imported(strange, mark, capsys, tmp_path):
    with pytest.raises(UserError, match=rf"config\.json' names code, '{NAME}'.*trust_code=True"):
        load_backbone(strange)
    teacher = ["fit", *TINY, "--epochs", "1", "--method", "rsd", "--teacher-checkpoint", strange]
    predict, export = ["predict", strange, strange], ["export", strange, "--to", "onnx", "--out", tmp_path / "x"]
    (strange / "image.png").write_bytes(b"")
    for words in (["eval", strange], predict, export, [*teacher, "--out", tmp_path / "s"]):
        code, _, err = run(capsys, *words)
        assert (code, f"names code, '{NAME}'" in err, "--trust-code true" in err) == (2, True, True), err
    assert not mark.exists()
    assert load_backbone(strange, trust_code=True).spec.name == NAME
    assert mark.exists()
    assert run(capsys, "eval", strange, "--trust-code", "true")[0] == 0
    # The name on the command line is the user's word.
    assert run(capsys, *teacher, "--teacher", NAME, "--trust-teacher", "true", "--out", tmp_path / "s")[0] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 2**18, "num_heads": 1},  # 10 TB in float32: building it would end this process
        {"depth": 10**6, "embed_dim": 2, "num_heads": 1},  # hours, also without memory
        {"depth": 10**10},
    ],
)
def test_a_model_that_is_larger_than_its_weights_takes_no_memory(finished, capsys, tmp_path, changes):
    shutil.copytree(finished, tmp_path / "large")
    path = tmp_path / "large" / "config.json"
    stored = json.loads(path.read_text())
    stored["crossdistill"]["model_args"] |= changes
    path.write_text(json.dumps(stored))
    teacher = ["fit", *TINY, "--epochs", "1", "--method", "rsd", "--teacher-checkpoint", tmp_path / "large"]
    for words in (["eval", tmp_path / "large"], [*teacher, "--out", tmp_path / "s"]):
        code, _, err = run(capsys, *words)
        assert (code, "describes a network of" in err) == (2, True), err


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "hf-hub:stranger/model"},
        {"name": "local-dir:/etc"},
        {"name": "crossdistill_small_stem", "model_args": {"base": "hf-hub:stranger/model", "strided": ["conv1"]}},
    ],
)
def test_the_file_of_a_run_sends_nobody_to_another_place(finished, capsys, tmp_path, changes):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "crossdistill": {**stored["crossdistill"], **changes}}))
    code, _, err = run(capsys, "eval", tmp_path / "run", "--trust-code", "true")
    assert (code, "a folder or a repository that would be read" in err) == (2, True), err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "c"], "names 3 classes, and the network has 10"),
        (["a"] * 10, "names the class 'a' twice"),
    ],
)
def test_class_names_that_do_not_fit_the_network(finished, capsys, tmp_path, names, message):
    shutil.copytree(finished, tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "label_names": names}))
    for words in (["eval", tmp_path / "odd"], ["predict", tmp_path / "odd", tmp_path / "odd"]):
        (tmp_path / "odd" / "image.png").write_bytes(b"")
        code, _, err = run(capsys, *words)
        assert (code, message in err) == (2, True), err


def test_a_run_can_be_read_by_others(finished):
    modes = {path.name: path.stat().st_mode & 0o777 for path in finished.iterdir() if path.is_file()}
    assert modes["student.safetensors"] == modes["config.json"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_vit", {"checkpoint": "weights.pth"}),
        ("test_vit", {"checkpoint_path": "weights.pth"}),
        ("test_vit", {"stages": []}),
        ("test_vit", {"num_classes": 3}),
        ("test_vit", {"pretrained": True}),
        ("test_vit", {"new_head": True}),
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
    ],
)
def test_a_file_decides_the_arguments_of_a_constructor_alone(finished, tmp_path, name, arguments):
    shutil.copytree(finished, tmp_path / "odd")
    path = tmp_path / "odd" / "config.json"
    stored = json.loads(path.read_text())
    stored["crossdistill"] |= {"name": name, "model_args": arguments}
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=f"'{next(iter(arguments))}' is not an argument that a network is built with"):
        load_backbone(tmp_path / "odd")


@pytest.mark.parametrize(
    "changes", [{"method": "tests.danger:Own"}, {"student": NAME}, {"method": "kd+tests.danger:Own"}]
)
def test_a_run_that_names_code_is_not_resumed(finished, mark, capsys, tmp_path, changes):
    out = tmp_path / "cut"
    shutil.copytree(finished, out)
    stored = yaml.safe_load((out / "config.yaml").read_text())
    # A file cannot trust itself.
    (out / "config.yaml").write_text(yaml.safe_dump({**stored, **changes, "trust_code": True}))
    code, _, err = run(capsys, "fit", "--out", out, "--resume")
    assert (code, "config.yaml' names code, 'tests.danger:" in err) == (2, True), err
    code, _, err = run(capsys, "eval", out, "--split", "val")
    assert code == 0, err
    assert not mark.exists()
    run(capsys, "fit", "--out", out, "--resume", "--trust-code", "true")
    assert mark.exists()


def test_the_users_own_code_is_resumed(mark, capsys, tmp_path):
    words = ["--method", "tests.danger:Own", "--student", NAME, "--out", tmp_path / "run"]
    tiny = [*TINY[2:10], *TINY[12:]]
    code, _, err = run(capsys, "fit", *tiny, *words)
    assert code == 0, err
    assert run(capsys, "fit", "--resume", "--out", tmp_path / "run")[0] == 2
    code, _, err = run(capsys, "fit", "--resume", *words)
    assert code == 0, err
