import json

import pytest
import timm
from timm.models import save_for_hf

from tests.backbones.transformers_folders import save
from tests.commands.running import TINY, run

COLOUR = ("--loader.in-chans", "3", "--method", "rsd")


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_fit_with_a_headless_teacher(tmp_path, capsys, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "dinov2", "dinov2")
    words = (*TINY, *COLOUR, "--cache", cache)
    code, _, err = run(capsys, "fit", *words, "--teacher", f"hf:{tmp_path / 'dinov2'}", "--out", "run")
    assert code == 0, err
    assert "the embedding is its pooled output" in err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "test" not in metrics["teacher"]
    assert metrics["teacher"]["img_size"] == 32


def test_classes_are_matched_by_name(tmp_path, capsys):
    other = [str(9 - number) for number in range(10)]
    save(tmp_path / "vit", "vit", other)
    words = ("--teacher", f"hf:{tmp_path / 'vit'}", "--method", "kd", "--trust-teacher", "true", "--epochs", "1")
    code, _, err = run(capsys, "fit", *TINY, *COLOUR, *words, "--out", tmp_path / "run")
    assert code == 0, err
    save(tmp_path / "vit", "vit", [f"digit {number}" for number in range(10)])
    code, _, err = run(capsys, "fit", *TINY, *COLOUR, *words, "--out", tmp_path / "other")
    assert code == 2
    assert "'digit 0'" in err


def test_a_probed_teacher_is_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "siglip", "siglip")
    name = "hf:siglip"
    words = (*TINY, "--loader.in-chans", "3")
    code, _, err = run(capsys, "teacher", *words, "--teacher", name, "--probe", "--out", tmp_path / "probed")
    assert code == 0, err
    # It is found from another working folder.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = (*words, "--teacher-checkpoint", tmp_path / "probed", "--method", "kd", "--trust-teacher", "true")
    code, _, err = run(capsys, "fit", *words, "--epochs", "1", "--out", tmp_path / "run")
    assert code == 0, err
    assert "test" in json.loads((tmp_path / "run" / "metrics.json").read_text())["teacher"]


def test_a_student_is_refused(tmp_path, capsys):
    code, _, err = run(capsys, "fit", "--data", "digits", "--student", "hf:x", "--method", "none", "--out", tmp_path)
    assert code == 2
    assert "can only teach" in err


def test_a_model_by_name_is_scored_with_its_own_weights(tmp_path, capsys):
    save(tmp_path / "vit", "vit", [str(number) for number in range(10)])
    save(tmp_path / "body", "dinov2")
    words = ("--data", "digits", "--loader.max-train", "300", "--loader.in-chans", "3", "--json")
    code, out, err = run(capsys, "eval", f"hf:{tmp_path / 'vit'}", *words, "--knn")
    assert code == 0, err
    assert {"top1", "knn"} <= json.loads(out).keys()
    code, out, err = run(capsys, "eval", f"hf:{tmp_path / 'body'}", *words, "--knn", "--linear-probe")
    assert code == 0, err
    assert json.loads(out)["knn"] > 20
    save_for_hf(timm.create_model("test_vit", num_classes=10, img_size=64), tmp_path / "timm")
    code, out, err = run(capsys, "eval", f"local-dir:{tmp_path / 'timm'}", *words, "--model.student-pretrained", "true")
    assert code == 0, err
    assert "top1" in json.loads(out)
    code, _, err = run(capsys, "eval", "test_vit", *words, "--knn")
    assert code == 2
    assert "needs weights: --checkpoint FILE, or --model.student-pretrained true" in err


def test_such_a_model_is_fine_tuned_with_a_new_head(tmp_path, capsys):
    save(tmp_path / "vit", "vit", [str(number) for number in range(10)])
    words = (*TINY, "--loader.in-chans", "3", "--epochs", "1", "--teacher", f"hf:{tmp_path / 'vit'}")
    code, _, err = run(capsys, "teacher", *words, "--model.new-head", "true", "--out", tmp_path / "run")
    assert code == 0, err
    code, _, err = run(capsys, "fit", *TINY, "--method", "none", "--model.new-head", "true", "--out", tmp_path / "none")
    assert code == 2
    assert "keeps the other weights of a checkpoint, but there is none" in err


def test_own_code_is_not_scored_with_random_weights(capsys):
    words = ("--data", "digits", "--model.student-pretrained", "true", "--trust-code", "true", "--knn")
    code, _, err = run(capsys, "eval", "tests.test_balance:ByConvolution", *words)
    assert (code, "needs weights: --checkpoint FILE" in err) == (2, True), err
