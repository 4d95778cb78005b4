"""The command line as its own process, and as several."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from crossdistill import load_backbone
from crossdistill.cli import main
from tests.commands.running import TINY
from tests.data.pictures import bar, put


def start(*words, env=None):
    command = [sys.executable, "-m", "crossdistill", *map(str, words)]
    everything = {**os.environ, **(env or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=everything)


def test_control_c_saves_and_resume_finishes(tmp_path):
    out = tmp_path / "run"
    run = start("fit", *TINY, "--method", "none", "--epochs", "40", "--out", out)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "interrupted by SIGINT; continue with --resume" in err
    assert "Traceback" not in err
    assert not (out / "metrics.json").exists()
    resumed = start("fit", "--out", out, "--resume")
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert json.loads((out / "metrics.json").read_text())["training"]["epochs"] == 40


@pytest.mark.slow
def test_nothing_depends_on_the_hash_seed_or_the_locale(tmp_path):
    data = tmp_path / "dåta"
    for number, name in enumerate(("Äpfel", "日本", "class10", "class2", "a[red]b", "it's", "A", "a")):
        for i in range(6):
            put(bar(number, i), data / name / f"ïmage {i}.png")
    ascii_names = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    results = set()
    for number, surroundings in enumerate(({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2"}, ascii_names)):
        out = tmp_path / f"rün{number}"
        words = [*TINY, "--method", "none", "--epochs", "1", "--loader.batch-size", "8", "--data", data, "--out", out]
        run = start("fit", *words, env={"PYTHONHASHSEED": "3", **surroundings})
        _, err = run.communicate(timeout=240)
        assert run.returncode == 0, err
        files = [(out / name).read_bytes() for name in ("split.json", "config.json", "student.safetensors")]
        results.add((*files, err.replace(str(out), "").partition("none: ")[0]))
    assert len(results) == 1
    assert json.loads(files[1])["label_names"] == ["A", "a", "a[red]b", "class10", "class2", "it's", "Äpfel", "日本"]


def test_two_processes_train_and_one_writes(tmp_path):
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    words = [
        "--teacher",
        "test_resnet",
        *TINY[2:],
        "--epochs",
        "6",
        "--loader.max-train",
        "1000",
    ]
    assert start("teacher", *words, "--out", teacher).wait(timeout=240) == 0
    run = start(
        "fit", *TINY, "--method", "rsd", "--teacher-checkpoint", teacher, "--out", out, "--optim.ema", "0.9",
        "--engine.devices", "2", "--loader.batch-size", "32", "--cache", tmp_path / "cache",
    )  # fmt: skip
    _, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training"]["global_batch"] == 64
    assert metrics["student"]["test"]["images"] == 540
    assert metrics["teacher"]["test"]["top1"] > 60
    assert (out / "report.html").exists()
    load_backbone(out)


def curve(run, name):
    """Read a column over all attempts."""
    found = []
    for attempt in sorted((run / "logs").glob("[0-9]*")):
        rows = csv.DictReader((attempt / "metrics.csv").read_text().splitlines())
        found += [float(row[name]) for row in rows if row.get(name)]
    return found


TWO = ["--engine.devices", "2", "--loader.batch-size", "32", "--engine.log-every", "1"]


@pytest.mark.slow
def test_divided_weights_train_as_whole_ones_do_and_resume(teacher_run, tmp_path):
    """FSDP on two processes, the teacher divided as well, stopped and resumed: the numbers of one process."""
    stopping = "tests.training.stopping:StoppingRSD"
    words = [*TINY, "--method", stopping, "--teacher-checkpoint", teacher_run, "--epochs", "3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["fit", *map(str, words), "--engine.log-every", "1", "--out", str(whole)]) == 0
    divided = ["--engine.strategy", "fsdp", "--engine.shard-teacher", "true"]
    stopped = start("fit", *words, *TWO, *divided, "--out", cut, env={"STOP_AT": "5"})
    _, err = stopped.communicate(timeout=240)
    assert stopped.returncode == 143, err
    resumed = start("fit", "--out", cut, "--resume", "--method", stopping)
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert curve(cut, "train/loss") == pytest.approx(curve(whole, "train/loss"), rel=1e-3)
    assert len(curve(whole, "train/loss")) == 9
    load_backbone(cut)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two(tmp_path, monkeypatch, capsys):
    stopping = "tests.training.stopping:Stopping"
    words = ["fit", *TINY, "--method", stopping, "--epochs", "3", "--engine.log-every", "1"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*words, "--out", str(whole)]) == 0
    monkeypatch.setenv("STOP_AT", "5")
    assert main([*words, "--out", str(cut)]) == 143
    monkeypatch.delenv("STOP_AT")
    capsys.readouterr()
    two = start("fit", "--out", cut, "--resume", "--method", stopping, "--engine.devices", "2")
    _, err = two.communicate(timeout=240)
    assert two.returncode == 2
    assert "used 64 images for a step over all processes, now it would use 128: resume it with --loader.batch" in err
    two = start("fit", "--out", cut, "--resume", "--method", stopping, *TWO)
    _, err = two.communicate(timeout=240)
    assert two.returncode == 0, err
    assert curve(cut, "train/loss") == pytest.approx(curve(whole, "train/loss"), rel=1e-3)


@pytest.mark.slow
def test_a_number_that_is_not_finite_in_one_of_two_processes(tmp_path):
    """Both stop with the finding of the other, or both leave the step out."""
    words = ["fit", *TINY, *TWO, "--method", "tests.training.diverging:Diverging", "--loader.max-train", "320"]
    wrong = {"BAD_AT": "3", "BAD_RANK": "1"}
    stopped = start(*words, "--out", tmp_path / "stop", env=wrong)
    _, err = stopped.communicate(timeout=240)
    assert stopped.returncode == 2, err
    assert "training stopped: the term 'mine' is nan in step 3 (epoch 1)" in err
    assert "Traceback" not in err
    assert len(json.loads((tmp_path / "stop" / "not-finite.json").read_text())["images"]) == 32
    assert not list((tmp_path / "stop").rglob("*.safetensors"))
    skipped = start(*words, "--engine.on-nan", "skip", "--out", tmp_path / "skip", env=wrong)
    _, err = skipped.communicate(timeout=240)
    assert skipped.returncode == 0, err
    assert (
        "the loss is not finite in another process; this optimiser step is left out (batches left out so far: 1)" in err
    )
    stored = torch.load(tmp_path / "skip" / "checkpoints" / "last.ckpt", weights_only=True)
    assert {int(one["step"]) for one in stored["optimizer_states"][0]["state"].values()} == {9}
    assert all(torch.isfinite(value).all() for value in stored["state_dict"].values())


@pytest.mark.slow
def test_the_demo(tmp_path):
    run = start("demo", "--out", tmp_path / "demo")
    out, err = run.communicate(timeout=1500)
    assert run.returncode == 0, err
    assert all(word in out for word in ("teacher", "none", "kd", "rsd", "report.html"))
