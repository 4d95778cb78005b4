import csv
import json
import re
import sqlite3
from contextlib import closing

import pytest

from tests.backbones.transformers_folders import save
from tests.commands.running import TINY, run


@pytest.fixture
def teacher(teacher_run):
    return ["--teacher-checkpoint", teacher_run]


def curve(out, name):
    logs = [log.read_text().splitlines() for log in sorted(out.glob("logs/*/metrics.csv"))]
    rows = [row for log in logs for row in csv.DictReader(log)]
    return [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name)]


def test_probe_data_chooses_the_best_epoch_of_a_run_without_labels(tmp_path, capsys, teacher):
    import torch

    words = [*TINY, *teacher, "--method", "rsd", "--loader.labels", "none", "--probe-data", "digits", "--epochs", "3"]
    words += ["--probe-linear", "true"]
    code, shown, err = run(capsys, "fit", *words, "--out", tmp_path / "run")
    assert code == 0, err
    assert "nearest neighbours, %" in shown
    assert "probe_data: digits" in (tmp_path / "run" / "config.yaml").read_text()
    scores = curve(tmp_path / "run", "val/knn")
    assert [epoch for epoch, _ in scores] == [0, 1, 2]
    assert len(curve(tmp_path / "run", "val/distill_loss")) == 3
    probed = [score for _, score in curve(tmp_path / "run", "val/linear_probe")]
    assert len(probed) == 3
    assert 10 < min(probed) <= max(probed) <= 100
    assert re.search(r"linear probe \d+\.\d\d%", err)
    stored = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    best = max(score for _, score in scores)
    assert stored["epoch"] == next(epoch for epoch, score in scores if score == best)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 10 < metrics["student"]["knn"] <= 100
    assert 80 < metrics["teacher"]["knn"] <= 100
    page = (tmp_path / "run" / "report.html").read_text()
    assert "nearest neighbours, %" in page
    assert ">linear probe<" in page
    assert f"{metrics['teacher']['linear_probe']:.2f}" in page
    # `eval` on the same images finds the same accuracy.
    words = ["--data", "digits", "--loader.labels", "classes", "--loader.max-train", "null"]
    code, out, err = run(capsys, "eval", tmp_path / "run", *words, "--knn", "--linear-probe", "--json")
    assert code == 0, err
    for kind in ("knn", "linear_probe"):
        assert json.loads(out)[kind] == pytest.approx(metrics["student"][kind], abs=0.5)


@pytest.mark.slow
def test_only_the_epochs_asked_for_are_scored(tmp_path, capsys, teacher):
    words = [*TINY, *teacher, "--method", "rsd", "--probe-every", "2", "--epochs", "3"]
    code, _, err = run(capsys, "fit", *words, "--out", tmp_path / "run")
    assert code == 0, err
    assert [epoch for epoch, _ in curve(tmp_path / "run", "val/knn")] == [1, 2]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "knn" in metrics["student"]
    assert "test" in metrics["student"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--probe-data", "digits"], "probe_data is for runs without labels"),
        (["--loader.labels", "none", "--probe-every", "1"], "give --probe-data"),
        (["--loader.labels", "none", "--probe-data", "nowhere"], "no such folder"),
        (["--probe-linear", "true"], "probe_linear has no effect without probe_every"),
        (["--probe-every", "1", "--probe-linear", "true", "--loader.max-train", "10"], "has no training images"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_training(tmp_path, capsys, teacher, given, message):
    code, _, err = run(capsys, "fit", *TINY, *teacher, "--method", "rsd", *given, "--out", tmp_path / "run")
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists()


def test_scores_of_an_earlier_epoch_are_shown_as_such_and_survive_a_resume(tmp_path, capsys, teacher, monkeypatch):
    """An epoch without a score neither repeats the last one nor chooses a checkpoint by it."""
    import torch

    words = [*TINY, *teacher, "--method", "tests.training.stopping:StoppingRSD", "--loader.labels", "none"]
    words += ["--probe-data", "digits", "--epochs", "5", "--probe-every", "2", "--out", tmp_path / "run"]
    # In the third epoch.
    monkeypatch.setenv("STOP_AT", "8")
    code, _, first = run(capsys, "fit", *words)
    assert code == 143, first
    monkeypatch.delenv("STOP_AT")
    code, _, second = run(capsys, "fit", *words, "--resume")
    assert code == 0, second
    scores = dict(curve(tmp_path / "run", "val/knn"))
    assert list(scores) == [1, 3, 4]
    said = (first + second).splitlines()
    lines = {int(found[1]): line for line in said if (found := re.search(r"epoch (\d)/5", line))}
    assert "knn" not in lines[1]
    for epoch, line in lines.items():
        if epoch > 1:
            scored = epoch if epoch == 5 else epoch - epoch % 2
            own = "" if scored == epoch else f" (epoch {scored})"
            assert f"  knn {scores[scored - 1]:.2f}%{own}  " in line
    stored = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored["epoch"] in scores
    assert scores[stored["epoch"]] == max(scores.values())


def test_runs_without_labels_are_compared_by_their_neighbours(tmp_path, capsys, teacher):
    words = [*TINY[2:], *teacher, "--student", "test_vit", "--loader.labels", "none", "--seeds", "0,1"]
    code, _, err = run(capsys, "compare", *words, "--methods", "rsd,rkd", "--out", tmp_path / "all")
    assert code == 2
    assert "give --probe-data" in err
    words += ["--probe-data", "digits", "--epochs", "2", "--out", tmp_path / "all"]
    code, out, err = run(capsys, "compare", *words, "--methods", "rsd,rkd")
    assert code == 0, err
    found = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "all").glob("*/metrics.json")}
    means = {}
    for method in ("rsd", "rkd"):
        knn = [metrics["student"]["knn"] for metrics in found.values() if metrics["method"] == method]
        means[method] = f"{sum(knn) / 2:.2f}"
        assert len(knn) == 2
        assert re.search(rf"{method} .*{means[method]}", out)
    teachers = {f"{metrics['teacher']['knn']:.2f}" for metrics in found.values()}
    assert re.search(rf"teacher \(.*{teachers.pop()}", out)
    page = (tmp_path / "all" / "report.html").read_text()
    assert f"rsd {means['rsd']}, rkd {means['rkd']}" in page
    assert "nearest neighbours on the test split, %" in page
    with closing(sqlite3.connect(tmp_path / "all" / "results.sqlite")) as table:
        stored = table.execute("SELECT folder, knn, top1 FROM runs").fetchall()
    assert sorted(stored) == sorted((name, metrics["student"]["knn"], None) for name, metrics in found.items())
    code, out, err = run(capsys, "report", tmp_path / "all", "--format", "csv", "--out", tmp_path / "page")
    assert code == 0, err
    table = list(csv.DictReader(out.splitlines()))
    assert {row[""]: row["nearest neighbours, %"] for row in table if row[""] in means} == means
    # A run with labels has an accuracy, which these have not.
    plain = ["fit", *TINY, "--method", "none", "--epochs", "1", "--out", tmp_path / "plain"]
    assert run(capsys, *plain)[0] == 0
    code, out, err = run(capsys, "report", tmp_path / "all", tmp_path / "plain", "--out", tmp_path / "page")
    assert code == 0, err
    assert "without labels, which have no accuracy" in err
    assert "rkd" not in out


def test_a_comparison_without_labels_goes_on(tmp_path, capsys, teacher):
    words = [*TINY[2:], *teacher, "--student", "test_vit", "--loader.labels", "none", "--probe-data", "digits"]
    words += ["--methods", "rsd", "--epochs", "1", "--out", tmp_path / "all"]
    for seeds in ("0", "0", "0,1"):
        code, _, err = run(capsys, "compare", *words, "--seeds", seeds)
        assert code == 0, err


def test_a_comparison_without_labels_takes_a_teacher_with_its_own_weights(tmp_path, capsys):
    save(tmp_path / "body", "dinov2")
    words = [*TINY, "--loader.in-chans", "3", "--loader.labels", "none", "--probe-data", "digits", "--epochs", "1"]
    words += ["--methods", "rsd", "--seeds", "0"]
    code, out, err = run(capsys, "compare", *words, "--teacher", f"hf:{tmp_path / 'body'}", "--out", tmp_path / "all")
    assert code == 0, err
    assert "teacher" in out
    code, out, err = run(capsys, "compare", *words, "--teacher", "test_resnet", "--out", tmp_path / "other")
    assert code == 2
    assert "has random weights, so it has nothing to teach" in err
