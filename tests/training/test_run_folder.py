import json
from dataclasses import replace

import pytest
import yaml

from crossdistill import UserError
from crossdistill.data import load_data
from crossdistill.training.checks import check_settings
from crossdistill.training.inputs import decide, digests
from crossdistill.training.run_folder import (
    check_folder,
    check_global_batch,
    check_inputs,
    check_unchanged,
    default_out,
    read_config,
    start_folder,
)


def decide_all(config):
    return decide(config, check_settings(config), load_data(config.data, config.loader))[0]


@pytest.fixture
def decided(quick):
    return decide_all(replace(quick, method="rsd", teacher="test_resnet", options={"rsd": {"kappa": 0.5}}))


def start(config, out, root=None, resume=False):
    start_folder(config, {"class names": "1"}, out, 1, resume=resume, root=root)


def test_decided_settings_are_written_and_come_back(decided, tmp_path):
    start(decided, tmp_path)
    stored = read_config(tmp_path)
    check_unchanged(stored, decided)
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert "auto" not in (plain["model"]["stem"], plain["augment"]["crop"], plain["engine"]["channels_last"])
    assert plain["options"]["rsd"]["kappa"] == 0.5
    assert plain["options"]["rsd"]["weight"] == 0.1
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 1


@pytest.mark.parametrize("text", ["", "epochs: 3", "loader: {views: 2}"])
def test_a_file_that_lacks_settings_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="is missing; the file of a run states every setting"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, loader=replace(c.loader, views=2)), "loader.views is now 2 and was None"),
        (lambda c: replace(c, options={"rsd": {"kappa": 0.6}}), "options.rsd.kappa is now 0.6 and was 0.5"),
        (lambda c: replace(c, cache="auto"), "cached is now True and was False"),
        (lambda c: replace(c, loader=replace(c.loader, batch_size=32)), "loader.batch_size is now 32 and was 64"),
    ],
)
def test_other_settings_are_named(decided, change, message):
    with pytest.raises(UserError, match=message):
        check_unchanged(decided, decide_all(change(decided)))


def test_how_a_run_is_executed_may_change(decided):
    engine = replace(decided.engine, threads=2, compile=True, channels_last=False, log_every=7)
    check_unchanged(decided, replace(decided, engine=engine, loader=replace(decided.loader, workers=3)))
    two = replace(decided, engine=replace(decided.engine, devices=2), loader=replace(decided.loader, batch_size=32))
    check_unchanged(decided, two, other_devices=True)
    with pytest.raises(UserError, match=r"engine.devices is now 2"):
        check_unchanged(decided, replace(decided, engine=replace(decided.engine, devices=2)))


def test_the_batch_over_all_processes_stays(decided, tmp_path):
    start(decided, tmp_path)
    check_global_batch(tmp_path, 64, 32, 2)
    with pytest.raises(UserError, match=r"used 64 images .* would use 128: resume it with --loader.batch-size 32"):
        check_global_batch(tmp_path, 64, 64, 2)


def test_paths_inside_the_root_are_relative_and_others_absolute(decided, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, out = tmp_path / "all", tmp_path / "all" / "run"
    (root / "teacher").mkdir(parents=True)
    config = replace(
        decided,
        data="./photos",
        teacher=None,
        teacher_checkpoint=["all/teacher", "../w.pth"],
        cache="cache",
        model=replace(decided.model, student_checkpoint="s.pth"),
    )
    start(config, out, root)
    plain = yaml.safe_load((out / "config.yaml").read_text())
    assert plain["teacher_checkpoint"] == ["../teacher", str(tmp_path.parent / "w.pth")]
    assert (plain["data"], plain["cache"]) == (str(tmp_path / "photos"), str(tmp_path / "cache"))
    assert plain["model"]["student_checkpoint"] == str(tmp_path / "s.pth")
    assert plain["loader"]["root"] == "data"
    check_unchanged(read_config(out), config)
    monkeypatch.chdir(tmp_path.parent)
    check_unchanged(read_config(out), replace(config, data=f"{tmp_path.name}/photos", **_elsewhere(config, tmp_path)))
    root.rename(tmp_path / "moved")
    assert read_config(tmp_path / "moved" / "run").teacher_checkpoint[0] == str(tmp_path / "moved" / "teacher")


def _elsewhere(config, folder):
    """The same paths, seen from the folder above."""
    teachers = [f"{folder.name}/all/teacher", "w.pth"]
    return {
        "teacher_checkpoint": teachers,
        "cache": f"{folder.name}/cache",
        "model": replace(config.model, student_checkpoint=f"{folder.name}/s.pth"),
    }


def test_words_are_kept_as_words(decided, tmp_path):
    start(decided, tmp_path, tmp_path)
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (plain["data"], plain["cache"]) == ("digits", "off")


def test_other_inputs_are_named(decided, tmp_path):
    data = load_data(decided.data, decided.loader)
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"one")
    config = replace(decided, teacher_checkpoint=str(weights))
    inputs = digests(config, data)
    assert {"class names", "training labels", "validation labels", "test labels"} < set(inputs)
    start_folder(config, inputs, tmp_path / "run", 1, resume=False)
    check_inputs(tmp_path / "run", inputs)
    weights.write_bytes(b"two")
    with pytest.raises(UserError, match=r"was started with other teacher_checkpoint 1 w\.pth"):
        check_inputs(tmp_path / "run", digests(config, data))
    (tmp_path / "run" / "environment.json").write_text("{}")
    with pytest.raises(UserError, match=r"environment\.json' is damaged: crossdistill: Field required"):
        check_inputs(tmp_path / "run", inputs)


def test_folders(quick, tmp_path):
    check_folder(tmp_path / "new", resume=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="does not hold a run to resume"):
        check_folder(tmp_path / "new", resume=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write to"):
        check_folder(tmp_path / "file" / "run", resume=False)
    name = default_out(replace(quick, teacher=["a:b", "c"])).name
    assert name == "digits-a_b+c-test_vit-rsd-s0"
