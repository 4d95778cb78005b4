import json
from dataclasses import replace

import pytest
import yaml

from crossdistill import UserError
from crossdistill.config.files import to_dict
from crossdistill.training.fit import read_data
from crossdistill.training.run_folder import (
    check_global_batch,
    check_unchanged,
    claim_folder,
    default_out,
    read_config,
    write_config,
)


@pytest.fixture
def decided(quick):
    return read_data(replace(quick, method="rsd", teacher="test_resnet", options={"rsd": {"kappa": 0.5}}))[0]


def test_decided_settings_are_written_and_come_back(decided, tmp_path):
    write_config(decided, tmp_path, 1)
    stored = read_config(tmp_path)
    check_unchanged(stored, decided)
    plain = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert "auto" not in (plain["model"]["stem"], plain["augment"]["crop"], plain["engine"]["channels_last"])
    assert plain["options"]["rsd"]["kappa"] == 0.5
    assert plain["options"]["rsd"]["weight"] == 0.1
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 1


def test_a_run_of_an_earlier_release_has_fewer_settings(decided, tmp_path):
    settings = to_dict(decided)
    del (
        settings["cache"],
        settings["loader"]["views"],
        settings["engine"]["strategy"],
        settings["options"]["rsd"]["spatial"],
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    check_unchanged(read_data(read_config(tmp_path))[0], decided)


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
        check_unchanged(decided, read_data(change(decided))[0])


def test_how_a_run_is_executed_may_change(decided):
    engine = replace(decided.engine, threads=2, compile=True, channels_last=False, log_every=7)
    check_unchanged(decided, replace(decided, engine=engine, loader=replace(decided.loader, workers=3)))
    two = replace(decided, engine=replace(decided.engine, devices=2), loader=replace(decided.loader, batch_size=32))
    check_unchanged(decided, two, other_devices=True)
    with pytest.raises(UserError, match=r"engine.devices is now 2"):
        check_unchanged(decided, replace(decided, engine=replace(decided.engine, devices=2)))


def test_the_batch_over_all_processes_stays(decided, tmp_path):
    write_config(decided, tmp_path, 1)
    check_global_batch(tmp_path, 64, 32, 2)
    with pytest.raises(UserError, match=r"used 64 images .* would use 128: resume it with --loader.batch-size 32"):
        check_global_batch(tmp_path, 64, 64, 2)


def test_checkpoints_inside_the_root_are_relative(decided, tmp_path):
    root, out = tmp_path / "all", tmp_path / "all" / "run"
    (root / "teacher").mkdir(parents=True)
    out.mkdir()
    config = replace(decided, teacher_checkpoint=[str(root / "teacher"), "/elsewhere/w.pth"], teacher=None)
    write_config(config, out, 1, root)
    assert yaml.safe_load((out / "config.yaml").read_text())["teacher_checkpoint"] == ["../teacher", "/elsewhere/w.pth"]
    root.rename(tmp_path / "moved")
    assert read_config(tmp_path / "moved" / "run").teacher_checkpoint[0] == str(tmp_path / "moved" / "teacher")


def test_folders(quick, tmp_path):
    claim_folder(tmp_path / "new", resume=False)
    with pytest.raises(UserError, match="holds no run to resume"):
        claim_folder(tmp_path / "new", resume=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write to"):
        claim_folder(tmp_path / "file" / "run", resume=False)
    name = default_out(replace(quick, teacher=["a:b", "c"])).name
    assert name == "digits-a_b+c-test_vit-rsd-s0"
