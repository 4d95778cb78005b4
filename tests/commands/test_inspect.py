import json
import shutil

import pytest

from crossdistill.evaluation.corruptions import CORRUPTIONS
from crossdistill.training import robustness
from tests.commands.running import TINY, run
from tests.data.pictures import bar, put


@pytest.fixture(scope="module")
def taught(tmp_path_factory, teacher_run):
    from crossdistill.cli import main

    out = tmp_path_factory.mktemp("inspected") / "run"
    words = ["fit", *TINY, "--method", "rsd", "--teacher-checkpoint", teacher_run, "--out", out, "--cache", "auto"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        assert main([str(word) for word in words]) == 0
    return out


def test_a_run_is_inspected_and_its_page_shows_what_is_found(capsys, taught, tmp_path):
    code, shown, err = run(capsys, "inspect", taught, "--images", "150")
    assert code == 0, err
    found = json.loads((taught / "inspection.json").read_text())
    assert found["images"] == 150
    agreement = found["agreement"]
    parts = [agreement[name] for name in ("both_right", "student_only", "teacher_only", "both_wrong")]
    assert sum(parts) == pytest.approx(100)
    assert agreement["both_right"] <= agreement["same"] <= 100 - agreement["student_only"] - agreement["teacher_only"]
    assert f"{agreement['same']:.2f}" in shown
    alignment = found["alignment"]
    for when in ("before", "after"):
        assert [len(row) for row in alignment[when]] == [5] * 5
        assert all(value is None or value < 1.01 for row in alignment[when] for value in row)
    assert alignment["before"] != alignment["after"]
    counts = [pair["count"] for pair in found["confusions"]]
    assert counts == sorted(counts, reverse=True)
    assert all(len(pair["pictures"]) == 3 and pair["truth"] != pair["predicted"] for pair in found["confusions"])
    assert all(len(one["student"]) == len(one["teacher"]) == 5 for one in found["neighbours"])
    page = (taught / "report.html").read_text()
    for text in ("Student and teacher", "linear CKA", "What the student confuses most", "Nearest test images"):
        assert text in page
    # The page of a comparison has it as well.
    code, _, err = run(capsys, "report", taught, "--out", tmp_path / "page")
    assert code == 0, err
    assert "What the student confuses most" in (tmp_path / "page" / "report.html").read_text()
    # The same images give the same findings.
    before = (taught / "inspection.json").read_text()
    assert run(capsys, "inspect", taught, "--images", "150")[0] == 0
    assert (taught / "inspection.json").read_text() == before


def test_student_and_teacher_on_corrupted_and_on_other_images(capsys, taught, tmp_path, monkeypatch):
    # Fewer of them, for time.
    monkeypatch.setattr(robustness, "CORRUPTIONS", {kind: CORRUPTIONS[kind] for kind in ("noise", "dark")})
    monkeypatch.setattr(robustness, "SEVERITIES", (1, 5))
    for number in range(5):
        put(bar(4, number), tmp_path / "other" / f"{number}.png")
    run_folder = shutil.copytree(taught, tmp_path / "run")
    words = ["inspect", run_folder, "--images", "1000", "--corruptions", "--ood", tmp_path / "other"]
    code, shown, err = run(capsys, *words)
    assert code == 0, err
    assert "On corrupted and on other images" in shown
    found = json.loads((run_folder / "inspection.json").read_text())["robustness"]
    for name, command in (("student", run_folder), ("teacher", _teacher(taught))):
        code, scored, err = run(capsys, "eval", command, "--corruptions", "--ood", tmp_path / "other", "--json")
        assert code == 0, err
        whole = json.loads(scored)
        assert found[name]["clean"] == pytest.approx(whole["top1"], abs=1e-4)
        assert set(found[name]["corrupted"]) == {"noise", "dark"}
        for kind, values in whole["corruptions"].items():
            assert found[name]["corrupted"][kind] == pytest.approx(values, abs=0.2)
        assert found[name]["ood"] == pytest.approx(whole["ood"], abs=0.5)
    assert found["teacher"]["clean"] > found["student"]["clean"]
    page = (run_folder / "report.html").read_text()
    assert "Accuracy on corrupted images" in page
    # A later look without these options keeps what was measured.
    assert run(capsys, "inspect", run_folder, "--images", "1000")[0] == 0
    assert json.loads((run_folder / "inspection.json").read_text())["robustness"] == found
    # A comparison shows the teacher of several students once.
    other = shutil.copytree(run_folder, tmp_path / "again")
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("epochs: 2\n", "epochs: 3\n"))
    code, _, err = run(capsys, "report", run_folder, other, "--out", tmp_path / "page")
    assert code == 0, err
    page = (tmp_path / "page" / "report.html").read_text()
    table = page[page.index("<h2>On corrupted") : page.index("Kept: mean of")]
    assert table.count("<td>teacher (") == 1
    assert table.count("<td>epochs=") + table.count("<td>rsd") == 2


def test_the_student_that_was_not_trained_is_that_of_the_run(capsys, taught, tmp_path):
    """A run of no effect: before and after are the same network."""
    out = tmp_path / "still"
    words = [*TINY, "--method", "kd", "--teacher-checkpoint", _teacher(taught), "--epochs", "1", "--out", out]
    assert run(capsys, "fit", *words, "--optim.lr", "1e-30", "--optim.weight-decay", "0")[0] == 0
    assert run(capsys, "inspect", out, "--images", "64")[0] == 0
    found = json.loads((out / "inspection.json").read_text())["alignment"]
    for before, after in zip(found["before"], found["after"], strict=True):
        assert before == pytest.approx(after, abs=1e-4)


def _teacher(taught):
    from crossdistill.training.run_folder import read_config

    return read_config(taught).teacher_checkpoint


def test_runs_without_a_teacher_or_without_labels(capsys, taught, tmp_path):
    alone = tmp_path / "alone"
    assert run(capsys, "fit", *TINY, "--method", "none", "--epochs", "1", "--out", alone)[0] == 0
    assert run(capsys, "inspect", alone, "--images", "40")[0] == 0
    found = json.loads((alone / "inspection.json").read_text())
    assert not {"alignment", "agreement", "shared_neighbours"} & found.keys()
    assert found["confusions"]
    body = tmp_path / "body"
    words = [*TINY, "--method", "rsd", "--teacher-checkpoint", _teacher(taught), "--loader.labels", "none"]
    assert run(capsys, "fit", *words, "--epochs", "1", "--out", body)[0] == 0
    code, shown, err = run(capsys, "inspect", body, "--images", "120")
    assert code == 0, err
    assert "same nearest images" in shown
    found = json.loads((body / "inspection.json").read_text())
    assert found["confusions"] == []
    assert "alignment" in found


def test_other_data_is_matched_by_the_names_of_its_classes(capsys, tmp_path):
    for name, kind in (("ant", 0), ("bee", 4)):
        for number in range(20):
            put(bar(kind, number), tmp_path / "data" / name / f"{number}.png")
            put(bar(kind, 100 + number), tmp_path / "new" / name / f"{number}.png")
            put(bar(kind, 100 + number), tmp_path / "other" / f"a-{name}" / f"{number}.png")
    out = tmp_path / "run"
    words = ["--student", "test_resnet", "--method", "none", "--epochs", "1", "--loader.batch-size", "8", "--out", out]
    assert run(capsys, "fit", *words, "--data", tmp_path / "data", "--engine.threads", "1")[0] == 0
    assert run(capsys, "inspect", out, "--data", tmp_path / "new")[0] == 0
    code, _, err = run(capsys, "inspect", out, "--data", tmp_path / "other")
    assert (code, "knows other classes than" in err) == (2, True)
    # A copy is divided as the run's own data is, so its test images are none that were trained on.
    code, _, err = run(capsys, "inspect", out, "--data", shutil.copytree(tmp_path / "data", tmp_path / "copy"))
    assert code == 0, err
    assert "are left out" not in err
    own = json.loads((out / "metrics.json").read_text())["student"]["test"]["images"]
    assert json.loads((out / "inspection.json").read_text())["images"] == own


def test_what_cannot_be_inspected_is_refused(capsys, taught, tmp_path):
    code, _, err = run(capsys, "inspect", tmp_path / "none")
    assert (code, "is not the folder of a run" in err) == (2, True)
    code, _, err = run(capsys, "inspect", taught, "--images", "2")
    assert (code, "at least 4 are needed" in err) == (2, True)
    code, _, err = run(capsys, "inspect", taught, "--ood", "digits")
    assert (code, "is the data itself" in err) == (2, True)
    code, _, err = run(capsys, "inspect", taught, "--ood", tmp_path / "nothing")
    assert (code, "nothing" in err) == (2, True)
    damaged = shutil.copytree(taught, tmp_path / "damaged")
    (damaged / "inspection.json").write_text('{"images": 3}')
    code, _, err = run(capsys, "report", damaged, "--out", tmp_path / "page")
    # The rest of the page needs no inspection.
    assert (code, "inspection.json' is damaged" in err, "run `crossdistill inspect` again" in err) == (0, True, True)
    assert "How alike" not in (tmp_path / "page" / "report.html").read_text()
