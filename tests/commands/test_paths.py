"""Paths as people write them, and the same run from another working directory."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from crossdistill.cli import main
from tests.commands.running import run

SMALL = [
    "--student", "test_vit", "--model.student-args.patch_size", "8", "--img-size", "32", "--model.stem", "native",
    "--loader.batch-size", "8", "--augment.hflip", "0", "--engine.accelerator", "cpu", "--engine.threads", "1",
    "--trust-teacher", "true",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with photos, a teacher trained on them, and weights for the student."""
    home = tmp_path_factory.mktemp("home")
    draw = np.random.default_rng(0)
    for place, name in enumerate(("cat", "dog", "fox")):
        (home / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 80, (32, 32, 3), dtype=np.uint8)
            pixels[..., place] += 150
            Image.fromarray(pixels).save(home / "photos" / name / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        words = ["--data", "./photos", *SMALL[4:]]
        assert main(["teacher", "--teacher", "test_resnet", *words, "--epochs", "2", "--out", "teacher"]) == 0
        words = ["--data", "photos", *SMALL]
        assert main(["fit", *words, "--method", "none", "--epochs", "1", "--out", "start"]) == 0
    return home


@pytest.mark.parametrize(
    ("inside", "data", "others"),
    [
        (".", "./photos", ["--teacher-checkpoint", "./teacher", "--cache", "./cache"]),
        ("work", "../photos", ["--teacher-checkpoint", "../teacher", "--model.student-checkpoint", "../start"]),
        pytest.param(
            ".",
            "photos",
            ["--teacher-checkpoint", "teacher/student.safetensors", "--teacher", "test_resnet"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "work",
            "../photos/",
            ["--teacher-checkpoint", "[../teacher, ./../teacher]", "--cache", "../cache/two"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_is_found_from_another_directory(capsys, home, tmp_path, monkeypatch, inside, data, others):
    here = tmp_path / "here"
    shutil.copytree(home, here)
    (here / inside).mkdir(exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(here / inside)
    words = ["fit", *SMALL, "--epochs", "2", "--data", data, *others]
    method = ["--method", "tests.training.stopping:StoppingRSD"]
    words += [*method, "--out", "run"]
    monkeypatch.setenv("STOP_AT", "4")
    assert run(capsys, *words)[0] == 143
    monkeypatch.delenv("STOP_AT")
    out = here / inside / "run"
    stored = yaml.safe_load((out / "config.yaml").read_text())
    assert stored["data"] == str(here / "photos")
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = run(capsys, "fit", "--resume", "--out", out, *method)
    assert code == 0, err
    metrics = json.loads((out / "metrics.json").read_text())
    code, shown, err = run(capsys, "eval", out, "--json")
    assert code == 0, err
    assert json.loads(shown)["top1"] == pytest.approx(metrics["student"]["test"]["top1"], abs=1e-4)
    code, _, err = run(capsys, "fit", "--recipe", out / "config.yaml", "--out", "again")
    assert code == 0, err
    again = json.loads((tmp_path / "elsewhere" / "again" / "metrics.json").read_text())
    # The run that was stopped and resumed has the scores of one that was not.
    assert again["student"]["test"] == metrics["student"]["test"]
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"again"}


def test_a_resume_with_a_recipe_refuses_what_differs(capsys, home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    out = tmp_path / "run"
    words = ["fit", *SMALL, "--epochs", "1", "--data", "photos", "--method", "none"]
    assert run(capsys, *words, "--out", out)[0] == 0
    same = tmp_path / "same.yaml"
    shutil.copy(out / "config.yaml", same)
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "fit", "--resume", "--recipe", same, "--out", out)[0] == 0
    other = tmp_path / "other.yaml"
    for before, after, message in (
        ("epochs: 1", "epochs: 3", "epochs is now 3 and was 1"),
        ("method: none", "method: kd", "needs a teacher"),
        ("  lr: 0.001", "  lr: 0.5", "optim.lr is now 0.5 and was 0.001"),
        (f"data: {home}/photos", "data: digits", "data is now 'digits' and was"),
    ):
        text = same.read_text()
        assert before in text
        other.write_text(text.replace(before, after))
        code, _, err = run(capsys, "fit", "--resume", "--recipe", other, "--out", out)
        assert (code, message in err) == (2, True), err
    # Without a recipe the stored settings are used, and a flag that changes one is refused.
    code, _, err = run(capsys, "fit", "--resume", "--out", out, "--epochs", "5")
    assert (code, "epochs is now 5 and was 1" in err) == (2, True)
