import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from crossdistill import UserError, load_backbone
from crossdistill.config import EngineConfig, LoaderConfig, ModelConfig, OptimConfig
from crossdistill.data.loaders import end_with_parent
from crossdistill.report.records import read_run
from crossdistill.training.callbacks import Interrupted
from crossdistill.training.fit import fit


@pytest.fixture
def config(quick):
    # Dropout and stochastic depth: a resumed run must draw the same.
    model = ModelConfig(stem="native", student_args={"patch_size": 8, "drop_path_rate": 0.2, "drop_rate": 0.1})
    return replace(quick, method="tests.training.stopping:Stopping", epochs=3, model=model)


@pytest.mark.parametrize(
    ("stop_at", "workers", "accumulate"),
    [
        (2, 0, 1),
        (7, 1, 1),
        pytest.param(5, 0, 1, marks=pytest.mark.slow),
        pytest.param(10, 1, 1, marks=pytest.mark.slow),
        (8, 0, 2),
        pytest.param(15, 0, 1, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    config, silent, tmp_path, monkeypatch, stop_at, workers, accumulate
):
    config = replace(
        config,
        # With workers the images are read one by one, without they live on the device.
        loader=LoaderConfig(batch_size=64, max_train=320, workers=workers, resident=False if workers else None),
        engine=EngineConfig(accelerator="cpu", threads=1, log_every=2, accumulate=accumulate),
        optim=OptimConfig(lr=2e-3, warmup_epochs=1, ema=0.9),
    )
    whole = fit(replace(config, out=str(tmp_path / "whole")), console=silent)
    cut = replace(config, out=str(tmp_path / "cut"))
    monkeypatch.setenv("STOP_AT", str(stop_at))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        fit(cut, console=silent)
    assert stopped.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert not (tmp_path / "cut" / "metrics.json").exists()
    monkeypatch.delenv("STOP_AT")
    fit(cut, resume=True, console=silent)
    last = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "cut")]
    assert last[0]["global_step"] == last[1]["global_step"]
    for name, value in last[0]["state_dict"].items():
        assert torch.equal(value, last[1]["state_dict"][name]), name
    kept = [load_backbone(tmp_path / name).model.state_dict() for name in ("whole", "cut")]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    runs = [read_run(whole), read_run(tmp_path / "cut")]
    assert runs[0].curves["val/top1"] == runs[1].curves["val/top1"]
    assert runs[0].metrics["student"]["test"] == runs[1].metrics["student"]["test"]
    assert json.loads((tmp_path / "cut" / "metrics.json").read_text())["training"]["seconds"] > 0


def test_the_balance_of_an_interrupted_run_goes_on(quick, silent, teacher_run, tmp_path, monkeypatch):
    config = replace(
        quick,
        method="tests.training.stopping:StoppingRSD",
        teacher_checkpoint=str(teacher_run),
        epochs=2,
        loader=LoaderConfig(batch_size=64, max_train=320),
        engine=EngineConfig(accelerator="cpu", threads=1, log_every=2, accumulate=2),
        optim=OptimConfig(lr=2e-3, balance=0.5),
    )
    whole = fit(replace(config, out=str(tmp_path / "whole")), console=silent)
    cut = replace(config, out=str(tmp_path / "cut"))
    monkeypatch.setenv("STOP_AT", "4")
    with pytest.raises(Interrupted):
        fit(cut, console=silent)
    monkeypatch.delenv("STOP_AT")
    fit(cut, resume=True, console=silent)
    states = [
        torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for out in (whole, tmp_path / "cut")
    ]
    assert int(states[0]["distiller.balance.steps"]) == 10
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_damaged_checkpoint_is_refused(config, silent, tmp_path, monkeypatch):
    cut = replace(config, out=str(tmp_path / "cut"))
    monkeypatch.setenv("STOP_AT", "7")
    with pytest.raises(Interrupted):
        fit(cut, console=silent)
    monkeypatch.delenv("STOP_AT")
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    stored = torch.load(last, weights_only=True)
    weights = stored["state_dict"]
    name = next(iter(weights))
    # Without the one before, there is nothing to fall back to.
    (last.parent / "last.before.ckpt").unlink(missing_ok=True)
    damage = {
        # Without its loops Lightning would silently train all epochs again, from the weights of the second.
        "is not a checkpoint of crossdistill": {key: value for key, value in stored.items() if key != "loops"},
        "is not a checkpoint of crossdistill: ": [1, 2],
        f"its weight '{name}' is missing": {**stored, "state_dict": {k: weights[k] for k in list(weights)[1:]}},
        f"'{name}' is missing or of another shape": {**stored, "state_dict": {**weights, name: torch.zeros(3)}},
        "the run has no weight": {**stored, "state_dict": {**weights, "distiller.other": torch.zeros(3)}},
        "belongs to another run": {**stored, "crossdistill_run": "0"},
    }
    for message, content in damage.items():
        torch.save(content, last)
        with pytest.raises(UserError, match=f"last.ckpt' .*{message}"):
            fit(cut, resume=True, console=silent)
    for content in (b"", whole[:1000]):
        last.write_bytes(content)
        with pytest.raises(UserError, match=r"last\.ckpt' is damaged"):
            fit(cut, resume=True, console=silent)
    last.write_bytes(whole)
    fit(cut, resume=True, console=silent)


def test_a_signal_to_all_processes_of_a_run_leaves_a_checkpoint(tmp_path):
    """A scheduler sends it to the workers of the loader as well."""
    out = tmp_path / "run"
    words = ["fit", "--recipe", "demo", "--method", "none", "--teacher", "null", "--epochs", "200", "--out", str(out)]
    words += ["--loader.workers", "2", "--loader.resident", "false", "--loader.max-train", "192"]
    process = subprocess.Popen(
        [sys.executable, "-m", "crossdistill", *words], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "interrupted by SIGTERM; continue with --resume" in err
    assert "Traceback" not in err


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs Linux")
def test_a_worker_ends_when_its_parent_says_so():
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_ends_with_parent, daemon=True)
    worker.start()
    time.sleep(0.5)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0


def _ends_with_parent():
    end_with_parent(0)
    time.sleep(60)
