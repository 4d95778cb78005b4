"""`export` and `predict`: the same answers in every form."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from crossdistill import UserError
from crossdistill.backbones.args import weights_digest
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.picture import UnreadableError
from crossdistill.data.preprocessing import Preprocessing
from crossdistill.export.about import require_packages
from crossdistill.export.agreement import Agreement, check_difference
from crossdistill.export.card import write_card
from crossdistill.export.runners import TimmModel
from tests.commands.running import run


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Test digits as files, among them ones that cannot be read."""
    root = tmp_path_factory.mktemp("images")
    test = load_data("digits", LoaderConfig()).test
    for number in range(12):
        test.read(number).save(root / f"{number:02}.png")
    turned = Image.Exif()
    turned[0x0112] = 3
    test.read(0).rotate(180).save(root / "turned é,\n.png", exif=turned)
    wide = np.asarray(test.read(0)).astype(np.uint16) * 257
    Image.fromarray(wide).save(root / "wide.png")
    (root / "broken.png").write_bytes((root / "00.png").read_bytes()[:50])
    (root / "notes.txt").write_text("no image")
    (root / "below").mkdir()
    test.read(0).save(root / "below" / "a[1].png")
    return root


@pytest.fixture(scope="module")
def exported(teacher_run, tmp_path_factory):
    """The teacher's run of the digits (one channel) as ONNX and int8, with the resize in the graph."""
    from crossdistill.cli import main

    out = tmp_path_factory.mktemp("exported")
    words = ["export", str(teacher_run), "--to", "onnx", "--images", "100", "--calibration", "32"]
    assert main([*words, "--out", str(out / "tensor"), "--int8", "--latency"]) == 0
    assert main([*words, "--out", str(out / "image"), "--input", "image"]) == 0
    return out


def predicted(text):
    rows = list(csv.reader(io.StringIO(text)))
    return rows[0], {os.path.basename(row[0]): row[1:] for row in rows[1:]}


def test_the_export_agrees_and_says_so(exported):
    tensor, image = (json.loads((exported / form / "export.json").read_text()) for form in ("tensor", "image"))
    for report in (tensor, image):
        found = report["agreement"]
        assert found["ONNX"]["difference"] < 1e-3
        assert found["ONNX"]["top1"] == found["PyTorch"]["top1"] > 50
        assert report["images"] == "100 of 540 test images"
    assert abs(tensor["agreement"]["ONNX int8"]["top1"] - tensor["agreement"]["PyTorch"]["top1"]) < 20
    assert tensor["calibration"].startswith("32 validation images")
    assert image["agreement"]["ONNX, resize in the graph"]["same"] > 95
    assert set(tensor["latency"]) == {"student, PyTorch", "student, ONNX", "student, ONNX int8"}
    assert {path.name for path in exported.iterdir()} == {"tensor", "image"}


def test_predictions_are_equal_in_every_form(exported, teacher_run, images, capsys):
    answers = {}
    for name, model in {
        "run": teacher_run,
        "onnx": exported / "tensor",
        "file": exported / "tensor" / "student.onnx",
        "image": exported / "image",
    }.items():
        code, out, err = run(capsys, "predict", model, images, "--format", "csv", "--top-k", 2, "--batch-size", 5)
        assert code == 3
        assert "broken.png' is skipped" in err
        assert "1 of 16 files could not be read" in err
        header, answers[name] = predicted(out)
        assert header == ["file", "class_1", "probability_1", "class_2", "probability_2"]
        assert len(answers[name]) == 15
    for name, tolerance in (("onnx", 1e-4), ("file", 1e-4), ("image", 0.02)):
        for file, row in answers["run"].items():
            assert float(answers[name][file][1]) == pytest.approx(float(row[1]), abs=tolerance)
    for rows in answers.values():
        for same in ("turned é,\n.png", "wide.png", "a[1].png"):
            assert rows[same][0] == rows["00.png"][0]
            assert float(rows[same][1]) == pytest.approx(float(rows["00.png"][1]), abs=1e-5)


def test_onnx_is_predicted_without_torch(exported, images):
    code = (
        "import sys; from crossdistill.cli import main; sys.argv = ['crossdistill']; "
        f"rc = main(['predict', {str(exported / 'tensor')!r}, {str(images / '00.png')!r}, '--format', 'jsonl']); "
        "found = {'torch', 'timm', 'lightning'} & set(sys.modules); "
        "print(found or 'none', file=sys.stderr); "
        "sys.exit(rc)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "none\n")
    line = json.loads(made.stdout)
    assert len(line["predictions"]) == 5
    assert line["file"] == str(images / "00.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a"]}, "the model names 1 classes, but has 10 logits"),
        ({"class_names": []}, "it names 0 classes, and its outputs are logits, embedding"),
        ({"preprocessing": {"input_size": [1, 48, 48]}}, "cannot be run on an input of"),
        ({"preprocessing": {"input_size": [1, 10**6, 10**6]}}, "an image size is"),
        ({"preprocessing": {"std": [0.0]}}, "std above 0"),
    ],
)
def test_a_description_that_does_not_fit_its_onnx_file(exported, images, tmp_path, capsys, changes, message):
    import onnx

    model = onnx.load(exported / "tensor" / "student.onnx")
    stated = next(prop for prop in model.metadata_props if prop.key == "crossdistill")
    stored = json.loads(stated.value)
    for name, value in changes.items():
        stored[name] = {**stored[name], **value} if isinstance(value, dict) else value
    stated.value = json.dumps(stored)
    onnx.save(model, tmp_path / "odd.onnx")
    code, _, err = run(capsys, "predict", tmp_path / "odd.onnx", images / "00.png")
    assert (code, message in err.splitlines()[-1]) == (2, True), err


def test_names_of_files_that_are_not_utf8_are_written(exported, images, tmp_path, capsys):
    import pyarrow.parquet as pq

    odd = tmp_path / os.fsdecode(b"\xff\xfe.png")
    shutil.copy(images / "00.png", odd)
    assert run(capsys, "predict", exported / "tensor", odd, "--embedding", tmp_path / "e.npy")[0] == 0
    assert (tmp_path / "e.txt").read_bytes() == os.fsencode(odd) + b"\n"
    assert run(capsys, "predict", exported / "tensor", odd, "--embedding", tmp_path / "e.parquet")[0] == 0
    assert pq.read_table(tmp_path / "e.parquet")["file"].to_pylist()[0].endswith("\\xff\\xfe.png")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--embedding", "absent/e.npy"], "there is no folder 'absent'"),
        (["--threads", 100_000], "it must be at most 1024"),
        (["--accelerator", "gpu"], "torch finds none here"),
    ],
)
def test_what_predict_cannot_do_is_refused(teacher_run, images, capsys, flags, message):
    if flags[-1] == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    code, _, err = run(capsys, "predict", teacher_run, images / "00.png", *flags)
    assert (code, message in err) == (2, True), err


def test_a_pipe_is_not_waited_for(exported, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    code, _, err = run(capsys, "predict", exported / "tensor", tmp_path / "pipe.png")
    assert (code, "is skipped: it is a pipe or a device" in err) == (3, True), err


def test_words_are_files_patterns_and_lines_of_stdin(exported, images, capsys, monkeypatch):
    model = exported / "tensor"
    (images / "notes.txt").write_text("mine")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images / '01.png'}\n\n{images / '02.png'}\n"))
    words = [images / "below" / "a[1].png", "-", images / "0*.png"]
    code, out, err = run(capsys, "predict", model, *words, "--format", "csv", "--top-k", 1)
    assert (code, err) == (0, "")
    assert [os.path.basename(row[0]) for row in csv.reader(io.StringIO(out))][1:5] == [
        "a[1].png",
        "01.png",
        "02.png",
        "00.png",
    ]
    # A line of stdin that names nothing is skipped, as a file that cannot be read is.
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images / 'gone.png'}\n{images / '01.png'}\n{images}/x*.png\n"))
    code, out, err = run(capsys, "predict", model, "-", "--format", "csv", "--top-k", 1)
    assert (code, len(out.splitlines()), err.count("is skipped")) == (3, 2, 2), err
    twice = [images / "01.png", images / "below" / ".." / "01.png", images / "02.png"]
    code, out, _ = run(capsys, "predict", model, *twice, "--format", "csv")
    assert [os.path.basename(line.split(",")[0]) for line in out.splitlines()[1:]] == ["01.png", "02.png"]
    code, out, _ = run(capsys, "predict", model, images / "00.png", "--top-k", 1)
    assert (code, "%" in out) == (0, True)
    for words, message in (
        ([images / "x*.png"], "nothing matches"),
        ([images / "x.png"], "there is no file or folder"),
        ([images, "--top-k", 0], "--top-k is 0"),
        ([images, "--embedding", "e.txt"], "ends in .npy or .parquet"),
        ([images, "--embedding", images / "notes.npy"], "notes.txt', for the names of the files, exists"),
    ):
        code, out, err = run(capsys, "predict", model, *words)
        assert (code, out, message in err) == (2, "", True), err


def test_embeddings_are_written(exported, teacher_run, images, capsys, tmp_path):
    for name, model in (("a", teacher_run), ("b", exported / "tensor")):
        words = [images, "--embedding", tmp_path / f"{name}.npy", "--batch-size", 4, "--format", "jsonl"]
        assert run(capsys, "predict", model, *words)[0] == 3
    first, second = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert first.shape[0] == len((tmp_path / "a.txt").read_text(encoding="utf-8").splitlines()) == 15
    np.testing.assert_allclose(first, second, atol=1e-3)
    assert {path.name for path in tmp_path.iterdir()} == {"a.npy", "a.txt", "b.npy", "b.txt"}
    # Nothing could be read, so what was there stays, and this is said.
    (tmp_path / "wrong.png").write_text("no image")
    before = (tmp_path / "a.npy").read_bytes()
    words = [tmp_path / "wrong.png", "--embedding", tmp_path / "a.npy", "--format", "csv"]
    code, _, err = run(capsys, "predict", model, *words)
    assert (code, "a.npy' is not written" in err) == (3, True)
    assert (tmp_path / "a.npy").read_bytes() == before


def test_a_strip_is_refused_before_it_takes_memory():
    look = Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3, 1.0, "center")
    with pytest.raises(UnreadableError, match="20000 x 2 px is too long"):
        look(Image.new("RGB", (20000, 2)))


@pytest.mark.parametrize("target", ["timm", "torch-export"])
def test_the_other_forms_are_equal(target, teacher_run, tmp_path, capsys, images):
    words = ["--to", target, "--images", 40, "--out", tmp_path / "out", "--push-to-hub", "me/student", "--dry-run"]
    code, out, err = run(capsys, "export", teacher_run, *words)
    assert code == 0, err
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert all(form["difference"] < 1e-3 and form["same"] == 100 for form in report["agreement"].values())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.count("TO FILL IN") >= 3
    assert "digits" in card
    listed = out[out.index("would be uploaded to me/student") :]
    assert all(path.name in listed for path in (tmp_path / "out").iterdir())
    if target == "timm":
        # Images of other data may have colours.
        assert TimmModel(tmp_path / "out").prepare(Image.new("RGB", (9, 8))).shape == (1, 32, 32)
        ours, theirs = (
            run(capsys, "predict", model, images / "00.png", "--format", "csv")[1]
            for model in (teacher_run, tmp_path / "out")
        )
        assert ours == theirs


def test_what_must_not_be_exported_is_refused(teacher_run, tmp_path, capsys):
    code, _, err = run(capsys, "export", teacher_run, "--to", "onnx", "--dry-run")
    assert (code, "--dry-run lists what --push-to-hub" in err) == (2, True)
    run_folder = tmp_path / "run"
    shutil.copytree(teacher_run, run_folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    path = run_folder / "student.safetensors"
    weights = load_file(path)
    next(value for value in weights.values() if value.is_floating_point()).view(-1)[0] = float("nan")
    save_file(weights, path)
    export = ["--to", "timm", "--out", tmp_path / "out"]
    assert "was changed after it was written" in run(capsys, "export", run_folder, *export)[2]
    stored = json.loads((run_folder / "config.json").read_text())
    stored["weights_sha256"] = weights_digest(run_folder)
    (run_folder / "config.json").write_text(json.dumps(stored))
    for words, message in (
        ([run_folder, *export], "not finite"),
        ([tmp_path, *export], "is not a finished run"),
        (
            [teacher_run, "--to", "timm", "--out", tmp_path / "other"],
            "holds 'thesis.txt', which",
        ),
        ([teacher_run, *export, "--int8"], "--int8 is for --to onnx"),
        ([teacher_run, *export, "--push-to-hub", "a/b/c"], "--push-to-hub 'a/b/c'"),
        ([teacher_run, *export, "--push-to-hub", "student"], "write OWNER/NAME"),
        ([teacher_run, "--to", "coreml"], "--to is 'coreml'; it must be one of onnx, torch-export, timm"),
        ([teacher_run.parent, *export], "it holds runs: give one of them, such as"),
        ([teacher_run, *export, "--images", 0], "--images is 0"),
    ):
        code, _, err = run(capsys, "export", *words)
        assert (code, message in err, len(err.splitlines())) == (2, True, 1), err
    assert {path.name for path in tmp_path.iterdir()} == {"run", "other"}
    code, _, err = run(capsys, "predict", run_folder, tmp_path)
    assert code == 2
    with pytest.raises(UserError, match=r"differs from PyTorch by up to 0\.002, more than 0\.001"):
        check_difference("ONNX", Agreement(0.002, None, None))
    with pytest.raises(UserError, match="differs"):
        check_difference("ONNX", Agreement(float("nan"), None, None))
    with pytest.raises(UserError, match=r"needs not_a_package: pip install 'crossdistill\[onnx\]'"):
        require_packages("--to onnx", "json", "not_a_package")


def test_an_export_is_replaced_unless_it_was_changed(teacher_run, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["export", teacher_run, "--to", "torch-export", "--images", 10, "--out", out]
    assert run(capsys, *words)[0] == 0
    assert run(capsys, *words)[0] == 0
    card = (out / "README.md").read_text(encoding="utf-8").replace("TO FILL IN", "CC0", 1)
    (out / "README.md").write_text(card, encoding="utf-8")
    code, _, err = run(capsys, *words)
    assert (code, "holds 'README.md', which is no file of an export" in err) == (2, True)
    assert (out / "README.md").read_text(encoding="utf-8") == card


def test_a_run_without_its_data_is_checked_on_noise(teacher_run, tmp_path, capsys):
    shutil.copytree(teacher_run, tmp_path / "moved")
    path = tmp_path / "moved" / "config.yaml"
    path.write_text(path.read_text().replace("data: digits", "data: /gone"))
    export = ["export", tmp_path / "moved", "--to", "torch-export"]
    code, _, err = run(capsys, *export)
    assert code == 0, err
    assert "checked on noise" in err
    assert (tmp_path / "moved" / "export" / "torch-export" / "student.pt2").is_file()
    assert run(capsys, "export", tmp_path / "moved", "--to", "onnx", "--int8")[0] == 2
    assert run(capsys, *export, "--data", "digits", "--images", 30)[0] == 0
    report = json.loads((tmp_path / "moved" / "export" / "torch-export" / "export.json").read_text())
    assert report["agreement"]["torch.export"]["top1"] is not None
    program = torch.export.load(tmp_path / "moved" / "export" / "torch-export" / "student.pt2").module()
    assert program(torch.zeros(3, 1, 32, 32))[0].shape == (3, 10)


def test_the_card_has_the_spread_over_seeds_and_every_name(teacher_run, tmp_path):
    for seed, top1 in ((0, 90.0), (1, 94.0)):
        folder = tmp_path / f"s{seed}"
        folder.mkdir()
        settings = (teacher_run / "config.yaml").read_text()
        (folder / "config.yaml").write_text(settings.replace("\nseed: 0\n", f"\nseed: {seed}\n"))
        metrics = json.loads((teacher_run / "metrics.json").read_text())
        metrics["student"]["test"]["top1"] = top1
        (folder / "metrics.json").write_text(json.dumps(metrics))
    # A run with other settings is not counted.
    shutil.copytree(tmp_path / "s1", tmp_path / "longer")
    text = (tmp_path / "longer" / "config.yaml").read_text()
    (tmp_path / "longer" / "config.yaml").write_text(text.replace("\nepochs: 6\n", "\nepochs: 7\n"))
    # Nor does a damaged one matter.
    shutil.copytree(tmp_path / "s1", tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.json").write_text("{")
    look = Preprocessing(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,), crop_pct=1.0, crop_mode="squash")
    report = {"target": "onnx", "images": "10 of 10 test images", "agreement": {}, "latency": {}, "machine": {}}
    names = ["```\n# x", 'é"', "\n"]
    write_card(tmp_path / "s0", tmp_path, names, look, report)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "Over 2 seeds: 92.00 ± 2.83" in card
    block = card[card.index("## Classes") :].split("```")[1].removeprefix("json")
    assert json.loads(block) == names
