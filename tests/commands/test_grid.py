"""Comparisons of several students and teachers, by several processes, with runs that fail."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from rich.console import Console

from crossdistill import UserError
from crossdistill.config import EngineConfig, LoaderConfig, RunConfig
from crossdistill.training.compare import compare
from crossdistill.training.grid import Axes, Sweep, Variant, make_cells
from tests.commands.running import TINY, run

QUICK = [*TINY[2:], "--epochs", "1", "--trust-teacher", "true"]
QUICK.remove("--model.student-args.patch_size")
QUICK.remove("8")


def rows(out, what="folder, state, top1"):
    with sqlite3.connect(out / "results.sqlite") as table:
        return table.execute(f"SELECT {what} FROM runs ORDER BY folder").fetchall()


def attempts(out):
    return {path.parent.name: len(list(path.glob("[0-9]*"))) for path in out.glob("*/logs")}


def test_a_grid_with_a_pair_that_does_not_fit(capsys, tmp_path, teacher_folder):
    out = tmp_path / "grid"
    words = ["compare", *QUICK, "--students", "test_resnet,test_vit{patch_size=8}", "--seeds", "0", "--out", out]
    words += ["--methods", "none,kd,rsd{decoupler=none}", "--teachers", f"{teacher_folder},test_vit2"]
    words += ["--sweep", "options.kd.temperature=1,4"]
    code, shown, _ = run(capsys, *words)
    assert code == 1
    name = teacher_folder.name
    pairs = [(s, t) for s in ("test_resnet", "test_vit_patch_size=8") for t in (name, "test_vit2")]
    expected = {f"{s}--{t}--kd--temperature={value}-s0" for s, t in pairs for value in (1, 4)}
    expected |= {f"{s}--none-s0" for s in ("test_resnet", "test_vit_patch_size=8")}
    # The embeddings of test_resnet have 96 dimensions, those of test_vit and test_vit2 64.
    fits = {f"test_resnet--{name}--rsd_decoupler=none-s0", "test_vit_patch_size=8--test_vit2--rsd_decoupler=none-s0"}
    fails = {f"{s}--{t}--rsd_decoupler=none-s0" for s, t in pairs} - fits
    assert {folder for folder, state, _ in rows(out) if state == "finished"} == expected | fits
    assert {folder for folder, state, _ in rows(out) if state == "failed"} == fails
    named = [line for line in shown.splitlines() if line.startswith("failed: ")]
    assert len(named) == len({json.loads((out / folder / "failed.json").read_text())["reason"] for folder in fails})
    assert all(any(folder in line for line in named) for folder in fails)
    assert "width" in json.loads((out / min(fails) / "failed.json").read_text())["reason"]
    assert (out / "teacher--test_vit2" / "metrics.json").exists()
    scores = dict(rows(out, "folder, teacher_top1"))
    good, untrained = (scores[f"test_resnet--{teacher}--kd--temperature=1-s0"] for teacher in (name, "test_vit2"))
    assert good > 80 > untrained
    page = (out / "report.html").read_text()
    assert "test_resnet, test_vit2 teach test_resnet, test_vit" in page
    assert "Runs that failed" in page
    assert all(folder in page for folder in fails)
    assert run(capsys, "report", out, "--out", tmp_path / "page")[0] == 0
    assert all(folder in (tmp_path / "page" / "report.html").read_text() for folder in fails)
    # What is finished stays, and a method is added.
    before = rows(out)
    code, shown, _ = run(capsys, *words, "--methods", "none,dist")
    assert code == 0
    assert "dist" in shown
    assert {row for row in before if row[1] == "finished"} < set(rows(out))
    assert {row[0] for row in rows(out)} - {row[0] for row in before} == {f"{s}--{t}--dist-s0" for s, t in pairs}
    assert set(attempts(out).values()) == {1}


def test_teachers_in_folders_of_one_name(capsys, tmp_path, teacher_folder):
    teachers = [shutil.copytree(teacher_folder, tmp_path / part / "teacher") for part in "ab"]
    words = [
        "compare",
        *QUICK,
        "--student",
        "test_resnet",
        "--seeds",
        "0",
        "--methods",
        "kd",
        "--out",
        tmp_path / "out",
    ]
    code, shown, _ = run(capsys, *words, "--teachers", ",".join(map(str, teachers)))
    assert code == 0
    assert [folder for folder, *_ in rows(tmp_path / "out")] == ["a_teacher--kd-s0", "b_teacher--kd-s0"]
    assert "a/teacher  kd" in shown
    model = json.loads((teacher_folder / "metrics.json").read_text())["student"]["name"]
    assert rows(tmp_path / "out", "teacher, teacher_model") == [("a/teacher", model), ("b/teacher", model)]


def test_students_and_teachers_that_are_listed_later_join_what_is_trained(capsys, tmp_path, teacher_folder):
    out, known = tmp_path / "out", ["compare", *QUICK, "--seeds", "0", "--methods", "none,kd"]
    one = ["--student", "test_resnet", "--teacher", "test_vit2", "--out", out]
    assert run(capsys, *known, *one)[0] == 0
    assert attempts(out) == {"teacher": 1, "none-s0": 1, "kd-s0": 1}
    several = ["--students", "test_resnet,test_vit", "--teachers", f"test_vit2,{teacher_folder}", "--out", out]
    code, shown, err = run(capsys, *known, *several)
    assert code == 0, err
    name = teacher_folder.name
    added = {"test_vit--none-s0", f"test_resnet--{name}--kd-s0"}
    added |= {f"test_vit--{teacher}--kd-s0" for teacher in ("test_vit2", name)}
    assert set(attempts(out)) == {"teacher", "none-s0", "kd-s0"} | added
    assert set(attempts(out).values()) == {1}
    assert all(text in shown for text in ("test_resnet  none", "test_resnet  test_vit2  kd", "test_vit  test_vit2  kd"))
    # And the other way round: a student of them alone, by the teacher in the folder.
    alone = ["--student", "test_vit", "--teacher-checkpoint", teacher_folder, "--out", out, "--methods", "none,kd,dist"]
    assert run(capsys, *known, *alone)[0] == 0
    added.add(f"test_vit--{name}--dist-s0")
    assert set(attempts(out)) == {"teacher", "none-s0", "kd-s0"} | added
    assert set(attempts(out).values()) == {1}
    # Alone, with a teacher that is trained first, beside another one.
    words = ["--student", "test_vit", "--teacher", "test_convnext", "--out", out, "--methods", "none,kd"]
    code, _, err = run(capsys, *known, *words)
    assert code == 0, err
    added |= {"test_vit--test_convnext--kd-s0", "teacher--test_convnext"}
    assert set(attempts(out)) == {"teacher", "none-s0", "kd-s0"} | added
    assert set(attempts(out).values()) == {1}
    # Another setting is refused, as in a folder of the same name.
    code, _, err = run(capsys, *known, *several, "--optim.lr", "1e-5")
    assert (code, "optim.lr is now 1e-05" in err) == (2, True), err


def test_a_plain_student_is_trained_once_for_all_values_of_what_it_does_not_read():
    for name, values in (("optim.balance", (0.5, 1.0)), ("cache_dtype", ("float16", "float32"))):
        axes = Axes([Variant("none", "none", {}), Variant("kd", "kd", {})], [0], sweep=Sweep(name, values))
        cells = make_cells(RunConfig(teacher="test_vit"), axes)
        assert [cell.variant.label for cell in cells] == ["none", "kd", "kd"]


def test_a_run_in_a_folder_named_like_a_model_is_not_that_model(tmp_path):
    folder = tmp_path / "test_resnet"
    folder.mkdir()
    cells = make_cells(RunConfig(), Axes([Variant("kd", "kd", {})], [0], teachers=["test_resnet", str(folder)]))
    assert [cell.config.teacher for cell in cells] == ["test_resnet", None]
    assert len({cell.folder for cell in cells}) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--students", "a,a"], "--students: 'a' is named twice"),
        (["--seeds", "0,0"], "--seeds: '0' is named twice"),
        (["--students", "test_vit{patch_size"], "write a name, or name{argument=value,...}"),
        (["--methods", "none,kd{temperature=2"], "method 'kd{temperature=2': write a name, or name{option=value,...}"),
        (["--students", "test_vit{={}"], "'{' is not a value"),
        (["--sweep", "optim.lr={"], "'{' is not a value"),
        (["--sweep", "optim.lr"], "write a setting and its values"),
        (["--sweep", "optim.rate=1,2"], "unknown setting 'optim.rate'"),
        (["--sweep", "seed=1,2"], "this cannot be swept; give several with --seeds"),
        (["--sweep", "optim.lr=-1,2"], "optim.lr is -1"),
        (["--shard", "3/2"], "i/n with i from 1 to n"),
        (["--methods", "kd{temperature=2},kd{temperature=2.0}"], "have the same settings"),
        (["--methods", "none,kd", "--sweep", "options.kd.temperature=1,1.0"], "the value 1 is given twice"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--teachers", "nothing", "--methods", "kd"], "unknown model 'nothing'"),
        (["--students", "nothing"], "unknown model 'nothing'"),
        (["--students", "test_resnet,nothing"], "unknown model 'nothing'"),
        (["--students", "test_resnet,torchvision:nothing"], "unknown torchvision model 'nothing'"),
        (["--teachers", "test_vit,nothing", "--methods", "none,kd"], "unknown model 'nothing'"),
        (
            ["--methods", "none,kd{temperature=2}", "--sweep", "options.kd.temperature=1,4"],
            "a method or a student in braces sets it as well",
        ),
        (
            ["--students", "test_vit{depth=2}", "--sweep", "model.student_args.depth=1,3", "--methods", "none"],
            "a method or a student in braces sets it as well",
        ),
        (["--teachers", "TEACHER", "--sweep", "model.teacher_img_size=16,64"], "states it of its teacher"),
        (
            ["--teachers", "TEACHER", "--model.teacher-img-size", "64"],
            "--model.teacher-img-size is for the model of --teacher, and --teachers does not list it",
        ),
        (
            ["--students", "test_resnet", "--model.student-checkpoint", "w.pth", "--methods", "none"],
            "is for the model of --student, and --students does not list it: leave it out, or give arguments in braces",
        ),
    ],
)
def test_wrong_grids_are_refused(capsys, tmp_path, teacher_folder, words, message):
    words = [teacher_folder if word == "TEACHER" else word for word in words]
    given = ["compare", *QUICK, "--methods", "none", "--seeds", "0", "--out", tmp_path / "out", *words]
    code, _, err = run(capsys, *given)
    assert (code, message in err) == (2, True), err
    assert not (tmp_path / "out").exists()


def test_shards_and_processes_divide_the_runs(capsys, tmp_path, teacher_folder):
    out = tmp_path / "out"
    words = ["compare", *QUICK, "--student", "test_resnet", "--teacher-checkpoint", teacher_folder, "--out", out]
    words += ["--methods", "none,kd", "--seeds", "0,1"]
    code, shown, _ = run(capsys, *words, "--shard", "1/4")
    assert (code, "3 runs are not finished" in shown) == (0, True)
    code, shown, progress = run(capsys, *words, "--jobs", "2")
    assert code == 0, progress
    assert "[1] " in progress
    assert "[2] " in progress
    assert [state for _, state, _ in rows(out)] == ["finished"] * 4
    assert attempts(out) == {f"{method}-s{seed}": 1 for method in ("none", "kd") for seed in (0, 1)}


def test_a_process_that_is_killed_is_named_and_its_run_is_trained(tmp_path):
    out = tmp_path / "out"
    words = ["compare", *QUICK, "--student", "test_resnet", "--methods", "none", "--seeds", "0,1", "--epochs", "5"]
    command = [sys.executable, "-m", "crossdistill", *words, "--jobs", "2", "--out", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*/config.yaml"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(max(process for process in others(str(out)) if process != running.pid), signal.SIGKILL)
    _, err = running.communicate(timeout=240)
    assert running.returncode == 0, err
    assert "was ended by SIGKILL; what it has not finished is trained by this one" in err
    assert [state for _, state, _ in rows(out)] == ["finished"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_all_processes_and_the_command_goes_on(tmp_path, teacher_folder, sent):
    out = tmp_path / "out"
    words = ["compare", *QUICK, "--student", "test_resnet", "--teacher-checkpoint", teacher_folder, "--out", out]
    words += ["--methods", "none,kd", "--seeds", "0", "--epochs", "100", "--jobs", "2"]
    command = [sys.executable, "-m", "crossdistill", *map(str, words)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    checkpoints = [out / f"{method}-s0" / "checkpoints" / "last.ckpt" for method in ("none", "kd")]
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in checkpoints) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(sent)
    _, err = running.communicate(timeout=120)
    assert running.returncode == 128 + sent, err
    assert not list(out.glob("*/metrics.json"))
    assert err.count("; continue by the same command") == 3
    assert f"interrupted by {sent.name}" in err


@pytest.mark.slow
def test_a_comparison_by_two_processes_that_is_killed_ten_times(capsys, tmp_path, teacher_folder):
    words = ["compare", *QUICK, "--student", "test_resnet", "--teacher-checkpoint", teacher_folder]
    words += ["--methods", "none,kd,rsd", "--seeds", "0,1", "--epochs", "2", "--jobs", "2", "--out"]
    command = [sys.executable, "-m", "crossdistill", *map(str, words)]
    out = tmp_path / "out"
    moments = random.Random(0)
    for _ in range(10):
        started = subprocess.Popen([*command, out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(5, 30))
        kill_all(str(out))
        started.wait()
    assert run(capsys, *words, out)[0] == 0
    assert run(capsys, *words, tmp_path / "whole")[0] == 0
    assert rows(tmp_path / "whole") == rows(out)
    # Nothing was begun again after it was finished: the log of a run is newer than its scores only while it trains.
    for path in out.glob("*/metrics.json"):
        logs = [file.stat().st_mtime for file in path.parent.glob("logs/*/metrics.csv")]
        assert max(logs) <= path.stat().st_mtime


def test_a_teacher_that_fails_is_trained_once(tmp_path):
    config = RunConfig(
        data="digits",
        student="test_resnet",
        teacher="test_vit2",
        img_size=32,
        epochs=1,
        loader=LoaderConfig(max_train=64),
        engine=EngineConfig(threads=1),
        teacher_training={"optim.lr": 1e30, "epochs": 3},
    )
    axes, since = Axes([Variant("none", "none", {}), Variant("kd", "kd", {})], [0, 1]), time.time()
    with pytest.raises(UserError, match="has become"):
        compare(config, axes, tmp_path / "out", Console(quiet=True), since=since)
    # Another process of the same command.
    outcome = compare(config, axes, tmp_path / "out", Console(quiet=True), since=since)
    assert set(outcome.failures) >= {"kd-s0", "kd-s1"}
    assert attempts(tmp_path / "out")["teacher"] == 1


def others(word):
    """Return the other processes whose command lines contain a word."""
    found = []
    for process in os.listdir("/proc"):
        if process.isdecimal() and int(process) != os.getpid():
            try:
                with open(f"/proc/{process}/cmdline") as file:
                    if word in file.read():
                        found.append(int(process))
            except OSError:
                continue
    return found


def kill_all(word, but=None):
    """Kill every other process whose command line contains a word."""
    for process in others(word):
        if process != but:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)


def test_jobs_of_a_cluster_share_the_runs(capsys, tmp_path, teacher_folder):
    """submitit's executor of this machine; it was tried by hand with Slurm, also with a job that is queued again."""
    out = tmp_path / "grid"
    words = ["compare", *QUICK, "--student", "test_resnet", "--seeds", "0,1", "--methods", "none,rsd", "--out", out]
    words += ["--teacher-checkpoint", teacher_folder, "--jobs", "2", "--cluster", "local"]
    code, shown, err = run(capsys, *words)
    assert code == 0, err
    assert "report: " in shown
    assert "4 runs finished, " in err
    assert [state for _, state, _ in rows(out)] == ["finished"] * 4
    assert set(attempts(out).values()) == {1}
    logs = "".join(path.read_text() for path in (out / ".jobs").glob("*log.err"))
    assert all(f"  {method}-s{seed}: " in logs for method in ("none", "rsd") for seed in (0, 1))

    # Nothing is left to train, so nothing is submitted.
    code, shown, err = run(capsys, *words)
    assert (code, "report: " in shown, "submitted" in err) == (0, True, False)


def test_jobs_of_a_cluster_that_are_interrupted_or_die(tmp_path, teacher_folder):
    out = tmp_path / "grid"
    words = ["compare", *QUICK, "--student", "test_resnet", "--teacher-checkpoint", teacher_folder, "--out", out]
    words += ["--methods", "none", "--seeds", "0", "--epochs", "1000", "--cluster", "local"]

    def start():
        command = [sys.executable, "-m", "crossdistill", *map(str, words)]
        running = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell ignores this signal for what it starts in the background, and so would the command.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        before = time.time()
        checkpoint = out / "none-s0" / "checkpoints" / "last.ckpt"
        while running.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime > before):
            time.sleep(0.1)
        return running

    running = start()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=120)
    assert (running.returncode, "save their checkpoints and end" in err) == (130, True), err
    deadline = time.monotonic() + 60
    while others(str(out)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not others(str(out))
    running = start()
    kill_all(str(out), but=running.pid)
    shown, err = running.communicate(timeout=120)
    assert (running.returncode, "1 runs are not finished" in shown) == (1, True), (shown, err)
    assert re.search(r"job \d+ failed", err), err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cluster", "local", "--shard", "1/2"], "--shard"),
        (["--cluster-parameters", "{timeout_min: 1}"], "--cluster, which is not given"),
        (["--cluster", "local", "--cluster-parameters", "{nonsense: 1}"], "cannot be submitted to 'local'"),
        (["--cluster", "slurm"], "add timeout_min"),
        (["--cluster", "slurm", "--cluster-parameters", "{timeout_min: 60}"], "cannot be submitted to 'slurm'"),
    ],
)
def test_jobs_that_cannot_be_submitted(capsys, tmp_path, teacher_folder, flags, message, monkeypatch):
    monkeypatch.setenv("PATH", "/bin")
    words = ["compare", *QUICK, "--student", "test_resnet", "--teacher-checkpoint", teacher_folder]
    code, _, err = run(capsys, *words, "--seeds", "0", "--methods", "none", "--out", tmp_path / "out", *flags)
    assert code == 2
    assert message in err.splitlines()[-1]
