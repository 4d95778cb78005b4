"""The command line as its own process, and as several."""

import json
import signal
import subprocess
import sys
import time

import pytest

from crossdistill import load_backbone
from tests.cli.test_main import TINY


def start(*words):
    command = [sys.executable, "-m", "crossdistill", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_control_c_saves_and_resume_finishes(tmp_path):
    out = tmp_path / "run"
    run = start("fit", *TINY, "--method", "none", "--epochs", "40", "--out", out)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "interrupted by SIGINT; go on with --resume" in err
    assert "Traceback" not in err
    assert not (out / "metrics.json").exists()
    resumed = start("fit", "--out", out, "--resume")
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert json.loads((out / "metrics.json").read_text())["training"]["epochs"] == 40


def test_two_processes_train_and_one_writes(tmp_path):
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    words = [
        "--teacher",
        "test_resnet",
        *TINY[2:],
        "--model.student-args",
        "{}",
        "--epochs",
        "6",
        "--loader.max-train",
        "1000",
    ]
    assert start("teacher", *words, "--out", teacher).wait(timeout=240) == 0
    run = start(
        "fit", *TINY, "--method", "rsd", "--teacher-checkpoint", teacher, "--out", out, "--optim.ema", "0.9",
        "--engine.devices", "2", "--loader.batch-size", "32", "--loader.workers", "1",
    )  # fmt: skip
    _, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training"]["global_batch"] == 64
    assert metrics["student"]["test"]["images"] == 540
    assert metrics["teacher"]["test"]["top1"] > 60
    assert (out / "report.html").exists()
    load_backbone(out)


@pytest.mark.slow
def test_the_demo(tmp_path):
    run = start("demo", "--out", tmp_path / "demo")
    out, err = run.communicate(timeout=1500)
    assert run.returncode == 0, err
    assert all(word in out for word in ("teacher", "none", "kd", "rsd", "report.html"))
