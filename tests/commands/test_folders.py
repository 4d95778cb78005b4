"""What a command leaves on the disk."""

import subprocess

import pytest
import yaml

from tests.commands.running import TINY, run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "--methods", "none", "--seeds=-1"], "seed is -1"),
        (["compare", "--methods", "none", "--seeds", "0,-1"], "seed is -1"),
        (["compare", "--methods", "none", "--seeds", "0", "--student", "nothing"], "unknown model 'nothing'"),
        (["compare", "--methods", "none", "--seeds", "0", "--data", "nothing"], "no such folder"),
        (["compare", "--methods", "kd", "--seeds", "0", "--teacher", "nothing"], "unknown model 'nothing'"),
        (["compare", "--methods", "kd", "--seeds", "0", "--teacher-checkpoint", "nothing"], "not the folder of a run"),
        # Before the teacher is trained.
        (["compare", "--methods", "kd", "--teacher", "test_resnet", "--student", "nothing"], "unknown model 'nothing'"),
        (["compare", "--methods", "none,rsd{on=embedding,decoupler=none}", "--teacher", "test_resnet"], "width"),
        (["fit", "--method", "none", "--student", "nothing"], "unknown model 'nothing'"),
        (["fit", "--method", "none", "--data", "nothing"], "no such folder"),
        (["fit", "--method", "none", "--augment.auto-augment", "nothing"], "timm does not accept 'nothing'"),
        (["fit", "--method", "kd", "--teacher", "test_resnet"], "the accuracy of teacher test_resnet is"),
        (["fit", "--method", "none", "--model.student-checkpoint", "nothing"], "does not exist"),
        (["fit", "--method", "none", "--resume"], "does not hold a run to resume"),
        (["teacher", "--teacher", "nothing"], "unknown model 'nothing'"),
        (["cache", "--method", "kd", "--teacher", "nothing", "--cache", "out"], "unknown model 'nothing'"),
        (["cache", "--method", "kd", "--teacher", "test_resnet", "--cache", "out"], "of teacher test_resnet is"),
    ],
)
def test_a_refused_command_leaves_no_folder(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    out = [] if words[0] == "cache" else ["--out", "out"]
    code, _, err = run(capsys, words[0], *TINY, *out, *words[1:])
    assert code == 2
    assert message in err
    assert "epoch" not in err
    assert not list(tmp_path.iterdir())


def test_a_tracked_folder_stays_as_it_is(capsys, tmp_path):
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "notes.md").write_text("what was tried")
    for words in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert run(capsys, "fit", *TINY, "--epochs", "1", "--method", "none", "--out", folder)[0] == 0
    assert (folder / "metrics.json").exists()
    assert not list(tmp_path.rglob(".gitignore"))
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    shown = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "A  experiments/notes.md" in shown
    # In a new folder inside it, everything is ignored.
    assert run(capsys, "fit", *TINY, "--epochs", "1", "--method", "none", "--out", folder / "run")[0] == 0
    assert (folder / "run" / ".gitignore").read_text() == "*\n"


def test_a_teacher_trained_with_mixup_and_students_on_its_cache(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("teacher: test_resnet\nteacher_training: {augment.mixup: 0.2, epochs: 1}\n")
    words = ["compare", "--recipe", recipe, *TINY, "--methods", "kd,rsd", "--seeds", "0", "--cache", "auto"]
    code, shown, err = run(capsys, *words, "--trust-teacher", "true", "--out", "out")
    assert code == 0, err
    assert "kd" in shown
    stored = {
        name: yaml.safe_load((tmp_path / "out" / name / "config.yaml").read_text()) for name in ("teacher", "kd-s0")
    }
    assert (stored["teacher"]["augment"]["mixup"], stored["teacher"]["cache"]) == (0.2, "off")
    assert (stored["kd-s0"]["augment"]["mixup"], stored["kd-s0"]["cache"]) == (0.0, "auto")
    # The same command goes on, and finds all runs finished.
    code, again, err = run(capsys, *words, "--trust-teacher", "true", "--out", "out")
    assert (code, again, "epoch" in err) == (0, shown, False)
