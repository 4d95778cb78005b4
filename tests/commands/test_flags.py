"""Which flags a command reads, and what it says of the others."""

import json
import re

import pytest
import yaml

from crossdistill.cli import main
from crossdistill.config import RunConfig
from crossdistill.config.files import by_dotted_name, to_dict
from tests.commands.running import TINY, run

SETTINGS = by_dotted_name(to_dict(RunConfig(teacher="test_resnet")))


@pytest.mark.parametrize("command", ["fit", "teacher", "cache", "compare", "demo", "eval"])
def test_every_setting_is_in_the_help_or_is_noted(capsys, command):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))
    shown = {name for name in SETTINGS if f"--{name.replace('_', '-')}" in options}
    assert shown
    words = [command, *(["resnet18"] if command == "eval" else []), "--print-config"]
    given = [name for name in SETTINGS if name not in ("role", "options") and (command, name) != ("cache", "out")]
    for name in given:
        text = SETTINGS[name] if isinstance(SETTINGS[name], str) else json.dumps(SETTINGS[name])
        words.append(f"--{name.replace('_', '-')}={text}")
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    noted = set(re.findall(r"does not read --(\S+)\n", capsys.readouterr().err))
    assert noted == {name.replace("_", "-") for name in given if name not in shown}


def test_the_method_alone_decides_which_options_are_new(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--options.hcd.label_smoothing", "0.2", "--optim.label-smoothing", "0.1", "--print-config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["options"] == {"hcd": {"label_smoothing": 0.2}}
    assert config["optim"]["label_smoothing"] == 0.1


def test_the_smoothing_of_hcd_is_not_that_of_the_task(capsys, tmp_path, teacher_folder):
    words = ["fit", *TINY, "--epochs", "1", "--method", "hcd", "--teacher-checkpoint", teacher_folder]
    first = {}
    for smoothing in ("0.0", "0.3"):
        out = tmp_path / smoothing
        code, _, err = run(
            capsys, *words, "--options.hcd.label_smoothing", smoothing, "--out", out, "--engine.log-every=1"
        )
        assert code == 0, err
        stored = yaml.safe_load((out / "config.yaml").read_text())
        assert stored["options"]["hcd"]["label_smoothing"] == float(smoothing)
        assert stored["optim"]["label_smoothing"] == 0.0
        header, row, *_ = (out / "logs" / "0" / "metrics.csv").read_text().splitlines()
        first[smoothing] = dict(zip(header.split(","), row.split(","), strict=True))
    # The task's loss of the first step is the same, the method's is not.
    assert first["0.0"]["train/task"] == first["0.3"]["train/task"]
    assert first["0.0"]["train/loss"] != first["0.3"]["train/loss"]
    code, _, err = run(capsys, *words, "--options.hcd.label_smoothing", "1.5", "--out", tmp_path / "wrong")
    assert (code, "label_smoothing is 1.5; it must be less than" in err) == (2, True)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--img-size", "32"],
        ["--checkpoint", "student.safetensors"],
        ["--recipe", "demo"],
        ["--model.stem", "native"],
        ["--model.student-args.depth", "3"],
    ],
)
def test_eval_refuses_what_the_run_decides(capsys, teacher_folder, words):
    code, shown, err = run(capsys, "eval", teacher_folder, *words)
    assert (code, shown) == (2, "")
    assert f"{words[0].removesuffix('.depth')} is for a model given by its name" in err
    assert len(err.splitlines()) == 1


def test_eval_names_the_split(capsys, teacher_folder):
    for split in ("val", "test"):
        code, shown, _ = run(capsys, "eval", teacher_folder, "--split", split, "--engine.accelerator", "cpu")
        assert (code, shown.startswith(f"On the {split} split")) == (0, True)
