import csv
import json
from dataclasses import asdict

import pytest

from crossdistill import UserError
from crossdistill.report.measure import score
from crossdistill.report.page import write_run_page
from crossdistill.report.records import read_run
from crossdistill.training.run_folder import environment

MODEL = {"name": "m", "parameters": 3, "macs": 4, "images_per_second": 5.0, "img_size": 32}
SCORES = {"top1": 50.0, "loss": 1.0, "ece": 2.0, "images": 10}
METRICS = {
    "method": "kd",
    "seed": 0,
    "data": "digits",
    "training": {"seconds": 1.0, "epochs": 2, "training_only_parameters": 0, "global_batch": 64},
    "student": {**MODEL, "test": SCORES},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "config.yaml").write_text("epochs: 2\n")
    (tmp_path / "environment.json").write_text(json.dumps(asdict(environment(1, {}))))
    (tmp_path / "samples.json").write_text("[]")
    return tmp_path


def write_log(folder, attempt, rows):
    path = folder / "logs" / str(attempt) / "metrics.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "epoch", "train/loss"])
        writer.writeheader()
        writer.writerows({"step": step, "epoch": 0, "train/loss": value} for step, value in rows)


def test_what_a_resumed_run_repeats_replaces_what_was_logged(folder):
    write_log(folder, 0, [(0, 9), (1, 8), (2, 7)])
    write_log(folder, 1, [(2, 6), (3, 5)])
    run = read_run(folder)
    assert run.curves["train/loss"] == [(0.5, 9.0), (1.0, 8.0), (1.5, 6.0), (2.0, 5.0)]
    assert (score(run), run.role) == (50.0, "student")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("method"), "method: Field required"),
        (lambda m: m["student"].pop("name"), "student.name: Field required"),
        (lambda m: m["student"]["test"].update(top1="high"), "student.test.top1"),
        (lambda m: m["training"].update(epochs=None), "training.epochs"),
        (lambda m: m.update(teacher={"name": "t"}), "teacher.parameters"),
        (lambda m: m["student"]["test"].update(top1=float("nan")), "student.test.top1"),
        (lambda m: m["student"]["test"].update(top1=101.0), "student.test.top1"),
        (lambda m: m["student"]["test"].update(loss=float("nan")), "student.test.loss"),
        (lambda m: m["student"]["test"].update(images=-3), "student.test.images"),
        (lambda m: m["student"].update(img_size=-5), ".*image size is -5"),
        (lambda m: m["training"].update(seconds=float("inf")), "training.seconds"),
    ],
)
def test_incomplete_metrics_are_named(folder, change, message):
    metrics = json.loads(json.dumps(METRICS))
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=f"metrics.json' is damaged: {message}"):
        read_run(folder)


@pytest.mark.parametrize("name", ["metrics.json", "config.yaml", "environment.json", "samples.json"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"is not a finished run: {name} is missing"):
        read_run(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            (name, text)
            for name in ("metrics.json", "environment.json", "samples.json")
            for text in ("", "{}", "{", "3")
        ),
        ("environment.json", '{"processes": 1, "inputs": {}}'),
        ("samples.json", "[{}]"),
        ("samples.json", "[3]"),
        ("logs/0/metrics.csv", "epoch,train/loss\n0,1.0\n"),
        ("logs/0/metrics.csv", "step,train/loss\n0,high\n"),
        ("logs/0/metrics.csv", "step,train/loss\n,1.0\n"),
        ("logs/0/metrics.csv", "step,train/loss\n0,1.0,2.0\n"),
        ("logs/0/metrics.csv", "step,train/loss\n-1,1.0\n"),
        ("config.yaml", ""),
    ],
)
def test_damaged_files_are_named(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}' is damaged") as refused:
        write_run_page(folder)
    assert "\n" not in str(refused.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("text", ["[", "- 1", "3"])
def test_a_damaged_config_is_named(folder, text):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml' (cannot be read as YAML|holds)"):
        read_run(folder)


def test_bytes_that_are_not_text_are_named(folder):
    for name in ("metrics.json", "config.yaml", "logs/0/metrics.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        before = (folder / name).read_bytes() if (folder / name).exists() else b"step,epoch\n"
        (folder / name).write_bytes(b"\xff\xfe\x00\x81")
        with pytest.raises(UserError, match=name):
            read_run(folder)
        (folder / name).write_bytes(before)


def test_a_teacher_needs_no_scores(folder):
    (folder / "metrics.json").write_text(json.dumps({**METRICS, "teacher": MODEL}))
    assert "test" not in read_run(folder).metrics["teacher"]
