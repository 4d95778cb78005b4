import csv
import json
import re

import pytest

from tests.commands.running import TINY, run


@pytest.fixture
def teacher(teacher_run):
    return ["--teacher-checkpoint", teacher_run]


def curve(out, name):
    with next(out.glob("logs/*/metrics.csv")).open() as file:
        return [(int(row["epoch"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def test_probe_data_chooses_the_best_epoch_of_a_run_without_labels(tmp_path, capsys, teacher):
    import torch

    words = [*TINY, *teacher, "--method", "rsd", "--loader.labels", "none", "--probe-data", "digits", "--epochs", "3"]
    words += ["--probe-linear", "true"]
    code, _, err = run(capsys, "fit", *words, "--out", tmp_path / "run")
    assert code == 0, err
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
    assert "by nearest neighbours" in page
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
    assert [epoch for epoch, _ in curve(tmp_path / "run", "val/knn")] == [1]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "knn" in metrics["student"]
    assert "test" in metrics["student"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--probe-data", "digits"], "probe_data is for runs without labels"),
        (["--loader.labels", "none", "--probe-every", "1"], "give --probe-data"),
        (["--probe-every", "9"], "there are 2 epochs"),
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
