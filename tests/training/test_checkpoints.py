import io
import os
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from crossdistill import UserError
from crossdistill.training.callbacks import Interrupted
from crossdistill.training.fit import fit
from crossdistill.training.run_lock import RunLock


@pytest.fixture(scope="module")
def config(quick):
    return replace(quick, method="tests.training.stopping:Stopping", epochs=3)


@pytest.fixture(scope="module")
def whole(config, silent, tmp_path_factory):
    return fit(replace(config, out=str(tmp_path_factory.mktemp("whole") / "run")), console=silent)


@pytest.fixture(scope="module")
def stopped(config, silent, tmp_path_factory):
    """A run that was interrupted in its third epoch, with two checkpoints."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOP_AT", "12")
        with pytest.raises(Interrupted):
            fit(replace(config, out=str(out)), console=silent)
    return out


@pytest.fixture
def cut(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def flip(path):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 8, len(content) // 8 + 4):
        content[place] ^= 0x55
    path.write_bytes(content)


def change(path, weight=None, **values):
    """Write a checkpoint again with other values, or with one of its weights changed."""
    stored = {**torch.load(path, weights_only=True), **values}
    if weight is not None:
        name = next(name for name, value in stored["state_dict"].items() if value.is_floating_point())
        stored["state_dict"][name] = weight(stored["state_dict"][name])
    torch.save(stored, path)


def resume(config, out):
    said = io.StringIO()
    fit(replace(config, out=str(out)), resume=True, console=Console(file=said, width=1000))
    return said.getvalue()


def same_student(one, other):
    weights = [load_file(out / "student.safetensors") for out in (one, other)]
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_checkpoint_before_is_kept_and_removed_at_the_end(stopped, whole):
    names = {path.name for path in (stopped / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "last.before.ckpt"}
    steps = [
        torch.load(stopped / "checkpoints" / name, weights_only=True)["global_step"]
        for name in ("last.before.ckpt", "last.ckpt")
    ]
    assert steps == [10, 12]
    assert {path.name for path in (whole / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "is damaged (the checksum of"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "is damaged (File is not a zip file)"),
        (lambda path: path.write_bytes(b""), "is damaged (File is not a zip file)"),
        (lambda path: torch.save({"a": torch.zeros(2)}, path), "is not a checkpoint of crossdistill"),
        (lambda path: change(path, state_dict=[]), "is damaged (its state_dict is a list)"),
        (lambda path: change(path, callbacks=[]), "is damaged (its callbacks is a list)"),
        (lambda path: change(path, loops=3), "is damaged (its loops is a int)"),
        (lambda path: change(path, weight=lambda w: w * torch.nan), "holds numbers that are not finite"),
        (lambda path: change(path, weight=lambda w: w.to_sparse()), "is sparse"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "is damaged (it is a pipe or a device"),
        (lambda path: path.unlink(), None),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(config, whole, cut, damage, said):
    damage(cut / "checkpoints" / "last.ckpt")
    shown = resume(config, cut)
    if said is not None:
        assert "last.ckpt" in shown
        assert said in shown
        assert "the run continues from last.before.ckpt" in shown
    assert same_student(whole, cut)


def test_a_checkpoint_of_another_run_is_passed_over(config, silent, whole, cut, tmp_path):
    other = fit(replace(config, seed=1, epochs=1, out=str(tmp_path / "other")), console=silent)
    shutil.copy(other / "checkpoints" / "last.ckpt", cut / "checkpoints" / "last.ckpt")
    assert "last.ckpt' belongs to another run; the run continues from last.before.ckpt" in resume(config, cut)
    assert same_student(whole, cut)


def test_two_damaged_checkpoints_and_a_damaged_best_one_are_refused(config, cut):
    for name in ("best.ckpt", "last.ckpt", "last.before.ckpt"):
        flip(cut / "checkpoints" / name)
        if name != "last.ckpt":
            with pytest.raises(UserError, match=rf"{name}' is damaged.*delete the folder"):
                resume(config, cut)


def test_an_older_best_checkpoint_of_the_run_is_refused(config, cut):
    best = cut / "checkpoints" / "best.ckpt"
    stored = torch.load(best, weights_only=True)
    for key, state in stored["callbacks"].items():
        if "best_model_score" in state and state["monitor"]:
            stored["callbacks"][key] = {**state, "best_model_score": state["best_model_score"] - 1}
    torch.save(stored, best)
    with pytest.raises(UserError, match="is not the best checkpoint of the run, but an older one"):
        resume(config, cut)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(quick, silent, tmp_path, monkeypatch):
    """A folder in the place of the file: also the superuser cannot write there."""
    out = tmp_path / "run"
    monkeypatch.setenv("BLOCK", str(out / "checkpoints" / "last.ckpt.partial"))
    config = replace(quick, method="tests.training.blocking:Blocking", epochs=3, out=str(out))
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt': .*; training stopped"):
        fit(config, console=silent)
    assert torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 0
    assert not (out / "student.safetensors").exists()
    assert not (out / "metrics.json").exists()


def test_one_run_has_one_writer(config, silent, cut):
    lock = RunLock()
    lock.acquire(cut)
    with pytest.raises(UserError, match="is being written by another process"):
        fit(replace(config, out=str(cut)), resume=True, console=silent)
    lock.release()
    fit(replace(config, out=str(cut)), resume=True, console=silent)
