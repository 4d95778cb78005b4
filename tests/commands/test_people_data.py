"""The command line on data as people have it."""

import csv
import json
import shutil

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_model
from timm.data import create_transform, resolve_model_data_config

from crossdistill import create_backbone, load_backbone
from crossdistill.cli import main
from crossdistill.config import LoaderConfig, ModelConfig
from crossdistill.data import load_data
from crossdistill.data.sources import load_source
from crossdistill.training.teachers import build_teachers
from crossdistill.types import Reads
from tests.data.pictures import bar, fill, noise, put

QUICK = ["--loader.batch-size", "32", "--optim.lr", "3e-3", "--augment.hflip", "0"]
QUICK += ["--engine.accelerator", "cpu", "--engine.threads", "1"]


def run(capsys, *words):
    code = main([str(word) for word in words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def fit(capsys, data, out, *words, epochs=1, student="test_resnet", method="none"):
    words = [*QUICK, "--epochs", epochs, *words]
    return run(capsys, "fit", "--student", student, "--method", method, "--data", data, "--out", out, *words)


def top1(out, who="student"):
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))[who]["test"]["top1"]


def bars(root, kinds, count=30, rgb=False):
    for name, kind in kinds.items():
        for i in range(count):
            image = Image.fromarray(bar(kind, 100 * kind + i))
            put(image.convert("RGB") if rgb else image, root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("height", "width"), [(16, 64), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((64, 16), (24, 96)))]
)
def test_the_ends_of_long_images_are_evaluated(capsys, tmp_path, height, width):
    rng = np.random.default_rng(0)
    for name, place in (("first", 0), ("last", max(height, width) - 8)):
        for i in range(60):
            pixels = rng.integers(0, 40, (height, width, 3)).astype(np.uint8)
            rows, columns = (
                (slice(3, 13), slice(place, place + 8)) if width > height else (slice(place, place + 8), slice(3, 13))
            )
            pixels[rows, columns] = 230
            put(pixels, tmp_path / "strips" / name / f"{i}.png")
    size = ["--img-size", "32"] if max(height, width) <= 64 else ["--img-size", "72", "--augment.crop", "resized"]
    assert fit(capsys, tmp_path / "strips", tmp_path / "run", *size, epochs=8)[0] == 0
    assert top1(tmp_path / "run") > 90
    with (tmp_path / "run" / "logs" / "0" / "metrics.csv").open() as file:
        assert any(row["val/top1"] for row in csv.DictReader(file))


def test_timm_with_the_exported_settings_scores_what_was_reported(capsys, tmp_path):
    data = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name, kind in (("ant", 0), ("bee", 4), ("cow", 2)):
        for i in range(30):
            wide = Image.fromarray(bar(kind, i)).resize((int(rng.integers(30, 60)), 32)).convert("RGB")
            put(wide, data / name / f"{i}.png")
    assert fit(capsys, data, tmp_path / "run", epochs=5)[0] == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    settings = resolve_model_data_config(model)
    transform = create_transform(**settings, is_training=False)
    test = load_data(str(data), LoaderConfig()).test
    with torch.inference_mode():
        answers = model(torch.stack([transform(test.read(i)) for i in range(len(test))])).argmax(1)
    assert 100 * (answers == torch.tensor(test.labels)).float().mean() == pytest.approx(
        top1(tmp_path / "run"), abs=1e-3
    )
    assert (settings["crop_mode"], settings["interpolation"]) == ("squash", "bicubic")
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert config["pictures"]["orientation"] == "EXIF applied"


def test_what_comes_after_a_run_is_said_and_not_scored(capsys, tmp_path):
    data = bars(tmp_path / "photos", {"ant": 0, "bee": 4})
    assert fit(capsys, data, tmp_path / "run")[0] == 0
    before = json.loads(run(capsys, "eval", tmp_path / "run", "--json")[1])
    for name in ("ant", "bee"):
        put(noise(7, 32, 32, 1), data / name / "0-first.png")
    code, shown, err = run(capsys, "eval", tmp_path / "run", "--json")
    assert (code, json.loads(shown)) == (0, before)
    assert "crossdistill: note: 2 images (ant/0-first.png, ...) came into the data after the run began" in err
    # The same images in another folder: those that trained are left out.
    shutil.move(data, tmp_path / "moved")
    code, shown, err = run(capsys, "eval", tmp_path / "run", "--data", tmp_path / "moved", "--json", "--split", "val")
    assert code == 0
    assert "are left out, since" in err or json.loads(shown)["images"] == 6


def test_a_run_goes_on_with_its_own_images(capsys, tmp_path, monkeypatch):
    data = bars(tmp_path / "photos", {"ant": 0, "bee": 4})
    stopping = "tests.training.stopping:Stopping"
    for name in ("whole", "cut", "gone"):
        if name == "whole":
            monkeypatch.delenv("STOP_AT", raising=False)
        else:
            monkeypatch.setenv("STOP_AT", "2")
        code, _, _ = fit(capsys, data, tmp_path / name, method=stopping, epochs=3)
        assert code == (0 if name == "whole" else 143)
    monkeypatch.delenv("STOP_AT")
    for name in ("ant", "bee"):
        put(noise(7, 32, 32, 1), data / name / "0-first.png")
    code, _, err = run(capsys, "fit", "--out", tmp_path / "cut", "--resume", "--method", stopping)
    assert code == 0
    assert "crossdistill: note: 2 images" in err
    metrics = [
        json.loads((tmp_path / name / "metrics.json").read_text())["student"]["test"] for name in ("whole", "cut")
    ]
    assert metrics[0] == metrics[1]
    (data / "ant" / "3.png").unlink()
    code, _, err = run(capsys, "fit", "--out", tmp_path / "gone", "--resume", "--method", stopping)
    assert code == 2
    assert "has changed: 1 image (ant/3.png) of the run are not in the data any more" in err


def test_a_comparison_goes_on_with_its_own_images(capsys, tmp_path):
    data = bars(tmp_path / "photos", {"ant": 0, "bee": 4}, 15)
    words = ["compare", "--student", "test_resnet", "--data", data, *QUICK, "--epochs", "1", "--seeds", "0"]
    assert run(capsys, *words, "--methods", "none", "--out", tmp_path / "out")[0] == 0
    put(noise(7, 32, 32, 1), data / "ant" / "0-first.png")
    code, _, err = run(capsys, *words[:-1], "0,1", "--methods", "none", "--out", tmp_path / "out")
    assert code == 0, err
    lists = [json.loads((tmp_path / "out" / f"none-s{seed}" / "split.json").read_text()) for seed in (0, 1)]
    assert lists[0]["images"]["train"] == lists[1]["images"]["train"]


def test_a_comparison_does_not_go_on_with_other_images(capsys, tmp_path):
    data, out = bars(tmp_path / "photos", {"ant": 0, "bee": 4}, 15), tmp_path / "out"
    words = ["compare", "--student", "test_resnet", "--data", data, *QUICK, "--epochs", "1", "--methods", "none"]
    assert run(capsys, *words, "--seeds", "0", "--out", out)[0] == 0
    changed = next(iter(json.loads((out / "none-s0" / "split.json").read_text())["images"]["train"]))
    put(noise(8, 32, 32, 1), data / changed)
    code, _, err = run(capsys, *words, "--seeds", "0,1", "--out", out)
    assert (code, f"has changed: 1 image ({changed}) of the run have other contents" in err) == (2, True)


def write_rows(folder, kinds, count=15, first=0):
    datasets = pytest.importorskip("datasets")
    numbers = [(place, kind, i) for place, kind in enumerate(kinds.values()) for i in range(first, first + count)]
    images = [Image.fromarray(bar(kind, 100 * kind + i)) for _, kind, i in numbers]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(kinds))})
    rows = {"image": images, "label": [place for place, _, _ in numbers]}
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"train-{first}.parquet")
    return folder


def test_a_run_on_parquet_is_not_scored_on_other_rows(capsys, tmp_path):
    kinds = {"ant": 0, "bee": 4}
    data, out = write_rows(tmp_path / "rows", kinds), tmp_path / "run"
    assert fit(capsys, data, out)[0] == 0
    assert run(capsys, "eval", out)[0] == 0
    write_rows(data, kinds, first=15)
    code, _, err = run(capsys, "eval", out)
    assert (code, "was started with other" in err) == (2, True)


def test_rows_that_a_run_on_files_has_trained_on_are_left_out(capsys, tmp_path):
    kinds, out = {"ant": 0, "bee": 4}, tmp_path / "run"
    data = bars(tmp_path / "photos", kinds, 15)
    assert fit(capsys, data, out)[0] == 0
    # The same PNG files as rows; half of them are in the test split of the rows.
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(kinds))})
    for split in ("train", "test"):
        paths = sorted(data.glob("*/*.png"))
        rows = {
            "image": [{"bytes": p.read_bytes(), "path": None} for p in paths],
            "label": [i // 15 for i in range(30)],
        }
        (tmp_path / "rows").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows" / f"{split}.parquet")
    code, shown, err = run(capsys, "eval", out, "--data", tmp_path / "rows", "--json")
    assert code == 0, err
    trained = len(json.loads((out / "split.json").read_text())["images"]["train"])
    assert f"{trained} of these images are left out" in err
    assert json.loads(shown)["images"] == 30 - trained


def test_a_teachers_classes_are_matched_by_name(capsys, tmp_path):
    kinds = {"ant": 0, "bee": 2, "cow": 4, "dog": 6}
    then = bars(tmp_path / "then", kinds, 30, rgb=True)
    code, _, _ = run(
        capsys,
        "teacher",
        "--teacher",
        "test_resnet",
        "--data",
        then,
        "--out",
        tmp_path / "teacher",
        *QUICK,
        "--epochs",
        "8",
    )
    assert code == 0
    assert top1(tmp_path / "teacher") > 90
    teacher = ["--teacher-checkpoint", tmp_path / "teacher"]
    weights = ["--teacher", "test_resnet", "--model.teacher-stem", "small"]
    weights += ["--teacher-checkpoint", tmp_path / "teacher" / "student.safetensors"]
    renamed = bars(tmp_path / "now", {"d_dog": 6, "e_ant": 0, "f_cow": 4, "g_bee": 2}, 30, rgb=True)
    names = tmp_path / "other.txt"
    names.write_text("e_ant\ng_bee\nf_cow\nd_dog\n", encoding="utf-8")
    code, _, err = fit(capsys, renamed, tmp_path / "a", *weights, "--model.teacher-classes", names, method="kd")
    assert (code, top1(tmp_path / "a", "teacher") > 90) == (0, True), err
    code, _, err = fit(capsys, renamed, tmp_path / "b", *weights, "--loader.val-fraction", "0.4", method="kd")
    assert (code, "its classes seem to be in another order" in err) == (2, True), err
    code, _, err = fit(capsys, renamed, tmp_path / "c", *teacher, method="kd")
    assert code == 2
    expected = "knows other classes than the student: only the teacher has 'ant', 'bee', 'cow', 'dog'; only the student"
    assert expected in err
    code, _, err = fit(capsys, renamed, tmp_path / "d", *teacher, method="rsd")
    assert code == 0
    assert "its accuracy is not known" in err
    assert "test" not in json.loads((tmp_path / "d" / "metrics.json").read_text())["teacher"]
    code, _, err = run(capsys, "eval", tmp_path / "teacher", "--data", renamed)
    assert (code, "knows other classes" in err) == (2, True)


def test_check_prints_everything_at_once(capsys, tmp_path):
    data = fill(tmp_path / "photos", ("ant", "bee"), 12)
    shutil.copytree(data / "ant", data / "copy")
    (data / "bee" / "bad.jpg").write_bytes(b"junk")
    (data / "bee" / "cut.png").write_bytes((data / "bee" / "1.png").read_bytes()[:-300])
    put(noise(3, channels=1), data / "ant" / "grey.png")
    (data / "ant" / "notes.txt").write_text("x")
    code, shown, _ = run(capsys, "check", data)
    assert code == 2
    for text in (
        "data photos: 3 classes",
        "files .png 37",
        "left out: 1 file of other types (.txt 1)",
        "bee/bad.jpg', which cannot be read",
        "bee/cut.png', which cannot be read",
        "1 of 37 images are grey",
        "copies of training images",
        "copies of one image in several classes",
        "2 images cannot be read",
    ):
        assert text in shown
    assert run(capsys, "check", "digits")[0] == 0
    code, _, err = run(capsys, "check", tmp_path / "none")
    assert (code, "no such folder" in err) == (2, True)


def test_a_run_without_labels_is_scored_with_the_labels_of_its_images(capsys, tmp_path):
    data = bars(tmp_path / "photos", {"ant": 0, "bee": 4}, 30)
    code, _, err = fit(capsys, data, tmp_path / "teacher")
    assert code == 0, err
    given = ["--loader.labels", "none", "--teacher-checkpoint", tmp_path / "teacher"]
    code, _, err = fit(capsys, data, tmp_path / "run", *given, method="rsd")
    assert code == 0, err
    code, shown, err = run(capsys, "eval", tmp_path / "run", "--loader.labels", "classes", "--knn", "--json")
    assert code == 0, err
    assert 0 < json.loads(shown)["images"] <= 12
    # What it has trained on, without labels, is not scored.
    assert "are left out, since" in err or json.loads(shown)["images"] == 6


def test_images_without_classes_are_read_at_any_depth(capsys, tmp_path):
    """A flat folder, folders in folders, and folders that are named as splits."""
    for place in range(30):
        put(noise(place, 32, 32, 3), tmp_path / "flat" / ("" if place % 2 else "some/deep") / f"{place}.png")
    put(noise(99, 32, 32, 3), tmp_path / "flat" / ".hidden" / "x.png")
    for split, count in (("train", 20), ("test", 4)):
        for place in range(count):
            put(noise(100 + place + 50 * (split == "test"), 32, 32, 3), tmp_path / "split" / split / f"{place}.png")
    for data, line in (
        ("flat", "no labels, 24 training, 3 validation and 3 test"),
        ("split", "no labels, 18 training"),
    ):
        code, out, err = run(capsys, "check", tmp_path / data, "--loader.labels", "none")
        assert code == 0, err
        assert line in " ".join((out + err).split())
    code, _, err = run(capsys, "check", tmp_path / "flat")
    assert code == 2
    code, _, err = run(capsys, "check", tmp_path / "nothing", "--loader.labels", "none")
    assert code == 2


def test_rows_are_not_scored_by_a_run_that_has_trained_on_them(capsys, tmp_path):
    """A run on parquet has no list of files; it knows its training images by their content."""
    data, out = write_rows(tmp_path / "rows", {"ant": 0, "bee": 4}), tmp_path / "run"
    assert fit(capsys, data, out)[0] == 0
    source = load_source(str(data), LoaderConfig())
    rows = source.splits["train"]
    for number, (cell, label) in enumerate(zip(rows.cells(range(len(rows))), rows.labels, strict=True)):
        for split in ("train", "test"):
            path = tmp_path / "files" / split / source.class_names[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cell["bytes"])
    trained = len(json.loads((out / "trained.json").read_text())["marks"])
    assert trained > len(rows) / 2
    code, shown, err = run(capsys, "eval", out, "--data", tmp_path / "files", "--json")
    assert code == 0, err
    assert f"{trained} of these images are left out" in err
    assert json.loads(shown)["images"] == len(rows) - trained
    (out / "trained.json").write_text("{}")
    code, _, err = run(capsys, "eval", out, "--data", tmp_path / "files")
    assert (code, "trained.json' is damaged" in err) == (2, True)


def test_unlabelled_training_images_are_not_scored(capsys, tmp_path):
    data, out = bars(tmp_path / "photos", {"ant": 0, "bee": 4}, 15), tmp_path / "run"
    others = bars(tmp_path / "others", {"ant": 1, "bee": 5}, 15)
    assert fit(capsys, data, tmp_path / "teacher")[0] == 0
    given = ["--teacher-checkpoint", tmp_path / "teacher", "--trust-teacher", "true", "--loader.unlabelled", others]
    code, _, err = fit(capsys, data, out, *given, method="rsd")
    assert code == 0, err
    code, _, err = run(capsys, "eval", out, "--data", others)
    assert (code, "has trained on all of these images" in err) == (2, True)


def test_several_teachers_agree_on_the_order_of_classes_without_labels(capsys, tmp_path):
    kinds = {"ant": 0, "bee": 4}
    data = bars(tmp_path / "photos", kinds, 15)
    assert fit(capsys, data, tmp_path / "first")[0] == 0
    assert fit(capsys, write_rows(tmp_path / "rows", {"bee": 4, "ant": 0}), tmp_path / "second")[0] == 0
    names = [json.loads((tmp_path / run / "config.json").read_text())["label_names"] for run in ("first", "second")]
    assert names == [["ant", "bee"], ["bee", "ant"]]
    teachers = build_teachers(
        [(None, str(tmp_path / run)) for run in ("first", "second")],
        ModelConfig(),
        load_data(str(data), LoaderConfig(labels="none")),
        Reads(logits=True),
        False,
    )
    assert [teacher.class_names for teacher in teachers] == [("ant", "bee")] * 2
    images = torch.rand(2, 1, 32, 32)
    alone = load_backbone(tmp_path / "second").eval()(images).logits
    assert torch.allclose(teachers[1].eval()(images).logits, alone[:, [1, 0]])


def test_a_list_of_classes_is_not_for_a_teacher_that_states_its_own(capsys, tmp_path):
    data = bars(tmp_path / "photos", {"ant": 0, "bee": 4}, 15)
    assert fit(capsys, data, tmp_path / "teacher")[0] == 0
    given = ["--teacher-checkpoint", tmp_path / "teacher", "--trust-teacher", "true", "--model.teacher-classes"]
    (tmp_path / "names.txt").write_text("bee\nant\n")
    code, _, err = fit(capsys, data, tmp_path / "a", *given, tmp_path / "names.txt", method="kd")
    assert (code, "is another list than the teacher" in err and "the order differs" in err) == (2, True)
    (tmp_path / "names.txt").write_text("ant\nant\n")
    code, _, err = fit(capsys, data, tmp_path / "b", *given, tmp_path / "names.txt", method="kd")
    assert (code, "names the class 'ant' twice" in err) == (2, True)


def test_a_teacher_is_scored_again_on_other_test_rows(capsys, tmp_path):
    """A cache keeps the teacher's score, for the images that it was found on."""
    kinds = {"ant": 0, "bee": 4}
    train = write_rows(tmp_path / "rows", kinds)
    assert fit(capsys, train, tmp_path / "teacher", epochs=16)[0] == 0
    scores = []
    for number, order in enumerate((kinds, {"ant": 4, "bee": 0})):
        test = write_rows(tmp_path / f"test{number}", order)
        (train / "test-0.parquet").write_bytes(next(test.glob("*.parquet")).read_bytes())
        given = ["--teacher-checkpoint", tmp_path / "teacher", "--trust-teacher", "true", "--cache", tmp_path / "cache"]
        code, _, err = fit(capsys, train, tmp_path / f"run{number}", *given, "--loader.views", "1", method="kd")
        assert code == 0, err
        scores.append(top1(tmp_path / f"run{number}", "teacher"))
    assert scores[0] > 60
    assert scores[1] == pytest.approx(100 - scores[0])


def test_classes_are_matched_by_name_where_embeddings_are_scored(tmp_path, capsys):
    for number, name in enumerate("ab"):
        for i in range(12):
            put(bar(number, i), tmp_path / "one" / name / f"{i}.png")
            put(bar(number, i + 20), tmp_path / "other" / {"a": "z", "b": "a"}[name] / f"{i}.png")
            put(bar(number, i + 20), tmp_path / "third" / {"a": "c", "b": "d"}[name] / f"{i}.png")
    out = tmp_path / "run"
    assert fit(capsys, tmp_path / "one", out, "--loader.batch-size", "8")[0] == 0
    config = json.loads((out / "config.json").read_text())
    # The same network with the names of the second folder: it says z where it said a, and a where it said b.
    config["label_names"] = config["pretrained_cfg"]["label_names"] = ["z", "a"]
    (out / "config.json").write_text(json.dumps(config))
    plain, probed = [], []
    for found, more in ((plain, []), (probed, ["--knn"])):
        code, shown, err = run(capsys, "eval", out, "--data", tmp_path / "other", *more, "--json")
        assert code == 0, err
        found.append(json.loads(shown)["top1"])
    assert plain == probed
    code, shown, _ = run(capsys, "eval", out, "--data", tmp_path / "third", "--knn", "--json")
    assert (code, "top1" in json.loads(shown)) == (0, False)
    code, _, err = run(capsys, "eval", out, "--data", tmp_path / "third", "--knn", "--corruptions")
    assert (code, "knows other classes than 'third': only the model has 'a', 'z'" in err) == (2, True), err


def test_a_probed_teacher_is_exported_as_it_was_scored(tmp_path, capsys):
    """Long images are squashed in both."""
    for number, name in enumerate("ab"):
        for i in range(16):
            put(Image.fromarray(bar(number, i)).resize((120, 40)), tmp_path / "long" / name / f"{i}.png")
    weights = tmp_path / "body.safetensors"
    save_model(create_backbone("test_resnet", 0, 32, in_chans=1).model, weights)
    given = ["--teacher", "test_resnet", "--teacher-checkpoint", weights, "--data", tmp_path / "long"]
    given += ["--loader.batch-size", "8", "--engine.accelerator", "cpu", "--engine.threads", "1", "--img-size", "32"]
    assert run(capsys, "teacher", "--probe", *given, "--out", tmp_path / "probed")[0] == 0
    stated = json.loads((tmp_path / "probed" / "config.json").read_text())["pretrained_cfg"]
    settings = yaml.safe_load((tmp_path / "probed" / "config.yaml").read_text())["augment"]
    assert (stated["crop_mode"], stated["crop_pct"]) == (settings["crop_mode"], settings["crop_pct"]) == ("squash", 1.0)


def test_a_student_without_labels_has_the_names_of_its_teachers_classes(capsys, tmp_path):
    """They are in the teacher's run, in a list, or in the file of weights."""
    data = bars(tmp_path / "photos", {"ant": 0, "bee": 4, "cow": 6}, 20)
    assert fit(capsys, data, tmp_path / "teacher", "--model.stem", "native", epochs=2)[0] == 0
    weights = load_file(tmp_path / "teacher" / "student.safetensors")
    # The same network, whose first class is the cow.
    weights |= {f"fc.{one}": weights[f"fc.{one}"].flip(0) for one in ("weight", "bias")}
    torch.save(weights, tmp_path / "plain.pth")
    torch.save({"state_dict": weights, "class_names": ["cow", "bee", "ant"]}, tmp_path / "named.pth")
    (tmp_path / "names.txt").write_text("cow\nbee\nant\n")
    by_file = ["--teacher", "test_resnet", "--model.stem", "native", "--loader.labels", "none"]
    for number, given in enumerate(
        (
            ["--teacher-checkpoint", tmp_path / "plain.pth", "--model.teacher-classes", tmp_path / "names.txt"],
            ["--teacher-checkpoint", tmp_path / "named.pth"],
        )
    ):
        out = tmp_path / f"run{number}"
        code, _, err = fit(capsys, data, out, *by_file, *given, method="kd", epochs=3)
        assert code == 0, err
        assert json.loads((out / "config.json").read_text())["label_names"] == ["cow", "bee", "ant"]
        assert load_backbone(out).class_names == ("cow", "bee", "ant")


def test_a_classifier_of_several_layers_is_refused_before_it_is_probed(tmp_path, capsys):
    fill(tmp_path / "data", count=8)
    given = ["--teacher", "caformer_s18", "--trust-teacher", "true", "--data", tmp_path / "data", "--img-size", "32"]
    given += ["--model.stem", "native", "--engine.accelerator", "cpu", "--engine.threads", "1"]
    code, _, err = run(capsys, "teacher", "--probe", *given, "--out", tmp_path / "probed")
    assert (code, "is not a linear layer with a bias: train it without --probe" in err) == (2, True), err
    assert "probe:" not in err


def test_a_weights_file_on_small_images_is_the_network_that_timm_builds(tmp_path, capsys):
    """The small stem accepts ImageNet's weights, and computes other numbers."""
    from crossdistill.training.weights import has_small_stem

    weights = tmp_path / "weights.pth"
    body = timm.create_model("test_resnet", num_classes=7)
    torch.save(body.state_dict(), weights)
    common = ["--data", "digits", "--loader.max-train", "100", "--loader.in-chans", "3", "--engine.threads", "1"]
    given = ["--teacher", "test_resnet", "--teacher-checkpoint", weights, "--model.new-head", "true"]
    code, _, err = run(capsys, "teacher", "--probe", *common, *given, "--out", tmp_path / "run")
    assert code == 0, err
    assert "test_resnet: its weights are a file, which states neither stem nor input size: native stem, 32 px" in err
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["model"]["stem"] == "native"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = body.eval().forward_head(body.forward_features(images), pre_logits=True)
        torch.testing.assert_close(load_backbone(tmp_path / "run").eval()(images).embedding, expected)
    code, _, err = run(capsys, "eval", "test_resnet", "--checkpoint", weights, *common, "--knn")
    assert (code, "native stem, 32 px" in err) == (0, True), err
    # A run with the small stem is recognised by its folder, from its files as well, finished or not.
    small = tmp_path / "small"
    code, _, err = run(capsys, "teacher", *common, "--teacher", "test_resnet", "--epochs", "1", "--out", small)
    assert code == 0, err
    files = [small, small / "student.safetensors", small / "checkpoints" / "last.ckpt"]
    assert all(has_small_stem(str(file)) for file in files)
    (small / "config.json").unlink()
    assert has_small_stem(str(files[2]))
    assert not has_small_stem(str(weights))
    # A stranger's file inside of a run's folder is not the run's.
    shutil.copy(weights, small / "timm.pth")
    assert not has_small_stem(str(small / "timm.pth"))
