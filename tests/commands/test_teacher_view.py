import json

import numpy as np
import pytest
from PIL import Image

from crossdistill.report.records import read_run
from tests.commands.running import run

WORDS = [
    "--student", "test_vit", "--teacher", "test_resnet", "--model.stem", "native", "--method", "rsd", "--epochs", "2",
    "--img-size", "32", "--model.teacher-img-size", "64", "--model.student-args.patch_size", "8",
    "--loader.batch-size", "8", "--engine.accelerator", "cpu", "--engine.threads", "1", "--augment.erasing", "0.5",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((100, 80), Image.Resampling.BICUBIC)
        folder = tmp_path / "photos" / ("a" if number % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("labels", ["classes", "none"])
def test_the_cache_holds_what_the_teacher_sees_live(tmp_path, capsys, photos, labels):
    words = [*WORDS, "--data", photos, "--loader.views", "2", "--loader.labels", labels]
    if labels == "none":
        words += ["--model.teacher-classes", "0", "--trust-teacher", "true"]  # its weights are random
    scores = []
    for cache in ("off", tmp_path / "cache"):
        out = tmp_path / f"run-{len(scores)}"
        given = [*words, "--cache", cache, "--cache-dtype", "float32", "--seed", "0", "--loader.view-seed", "0"]
        code, _, err = run(capsys, "fit", *given, "--out", out)
        assert code == 0, err
        assert "teacher_view: own" in (out / "config.yaml").read_text()
        assert "teacher test_resnet: its input is 64 px, made from the image" in err
        rows = (next(out.glob("logs/*/metrics.csv"))).read_text().splitlines()
        columns = rows[0].split(",")
        place = next(number for number, name in enumerate(columns) if name in ("val/loss", "val/distill_loss"))
        scores.append([float(cells[place]) for row in rows[1:] if (cells := row.split(","))[place]])
    assert scores[0]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)
    record = json.loads((tmp_path / "cache" / "cache.json").read_text())["fingerprint"]["transform"]
    assert record["img_size"] == 64
    assert (record["teacher_view"], record["drawn_size"]) == ("own", 32)
    # The same folder is refused where the teacher sees the student's view.
    given = [*words, "--cache", tmp_path / "cache", "--cache-dtype", "float32", "--augment.teacher-view", "student"]
    code, _, err = run(capsys, "fit", *given, "--out", tmp_path / "other")
    assert code == 2
    assert "another transform" in err
    assert "its input is 64 px, resized from the student's 32 px" in err


def test_held_out_outputs_have_the_precision_of_the_run(tmp_path, capsys, photos):
    """Without labels the held-out loss chooses the best epoch, with a cache as without one."""
    words = [*WORDS, "--data", photos, "--loader.views", "2", "--loader.labels", "none", "--engine.precision", "bf16"]
    words += ["--model.teacher-classes", "0", "--trust-teacher", "true"]
    words += ["--optim.lr", "1e-9", "--optim.schedule", "none"]
    losses = []
    for cache in ("off", tmp_path / "cache"):
        out = tmp_path / f"run-{len(losses)}"
        code, _, err = run(capsys, "fit", *words, "--cache", cache, "--cache-dtype", "float32", "--out", out)
        assert code == 0, err
        losses.append(read_run(out).curves["val/distill_loss"][0][1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
