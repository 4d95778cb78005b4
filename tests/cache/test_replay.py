"""Training on stored outputs is training with the teacher, to the precision stored."""

import copy
import csv
import json
import re
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

import crossdistill as cd
from crossdistill import UserError
from crossdistill.cache import CacheFormat
from crossdistill.cli import main
from crossdistill.config import AugmentConfig, LoaderConfig
from crossdistill.report.records import read_run
from crossdistill.training.compare import compare
from crossdistill.training.fit import fit
from crossdistill.training.grid import Axes, Variant
from tests.pairs import METHODS, build

PAIRS = [("cnn", "plain_vit"), ("headed_cnn", "plain_vit")]
MORE_PAIRS = [("plain_vit", "cnn"), ("mlp", "hierarchical_vit"), ("hybrid", "mlp"), ("plain_vit", "headed_cnn")]


@pytest.mark.parametrize(
    ("student", "teacher"), [*PAIRS, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_PAIRS)]
)
def test_every_method_gives_the_same_losses_from_what_is_stored(student, teacher):
    images, targets = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    pair = build(student), build(teacher)
    for method, options in list(METHODS.values())[1:]:
        torch.manual_seed(1)
        online = cd.create_distiller(
            method, student=copy.deepcopy(pair[0]), teacher=copy.deepcopy(pair[1]), options=options
        ).train()
        cached = copy.deepcopy(online)
        output = online.teacher(images, stages=True)
        shapes = tuple((n, tuple(output.stages[n - 1].shape[1:])) for n in online.needs.teacher.stages)
        fmt = CacheFormat(8, output.embedding.shape[1], 5, stages=shapes)
        rows = np.empty(8, dtype=fmt.row)
        fmt.pack(output, rows)
        cached.release_teacher()
        assert cached.teacher is None
        index = torch.arange(8)
        steps = online(images, targets, None, index), cached(images, targets, fmt.unpack(rows), index)
        for name, value in steps[0].terms.items():
            torch.testing.assert_close(
                steps[1].terms[name], value, rtol=4e-3, atol=1e-4, msg=f"{method} {options} {name}"
            )
        for step in steps:
            step.loss.backward()
        grads = [torch.cat([p.grad.flatten() for p in d.student.parameters()]) for d in (online, cached)]
        cosine = torch.nn.functional.cosine_similarity(*grads, dim=0)
        assert cosine > 0.999, (method, options)


def test_a_distiller_without_its_teacher_says_what_it_needs():
    distiller = cd.create_distiller("kd", student=build("cnn"), teacher=build("mlp"))
    distiller.release_teacher()
    with pytest.raises(ValueError, match="pass teacher_output"):
        distiller(torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))


def test_fbt_keeps_of_the_teacher_only_its_last_stage_and_head():
    teacher = build("plain_vit")
    whole = sum(p.numel() for p in teacher.parameters())
    last = [*teacher.model.blocks[-1].parameters(), *teacher.model.norm.parameters(), *teacher.model.head.parameters()]
    distiller = cd.create_distiller("fbt", student=build("cnn"), teacher=teacher)
    distiller.release_teacher()
    freed = [*teacher.model.patch_embed.parameters(), *teacher.model.blocks[:-1].parameters()]
    assert all(p.numel() == 0 for p in freed)
    assert all(p.numel() > 0 for p in last)
    assert sum(p.numel() for p in teacher.parameters()) < whole / 5
    distiller.to(torch.float64)
    assert all(p.dtype == torch.float64 for p in last)


@pytest.fixture
def config(quick, teacher_run, tmp_path):
    return replace(
        quick,
        method="rsd",
        epochs=3,
        teacher_checkpoint=str(teacher_run),
        loader=LoaderConfig(batch_size=64, max_train=320, views=2),
        cache=str(tmp_path / "cache"),
    )


def losses(run):
    with open(run / "logs" / "0" / "metrics.csv") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize(
    ("method", "resident"),
    [
        ("rsd", None),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("fbt", None), ("hcd", None), ("kd", False))),
    ],
)
def test_a_cached_run_is_the_online_run_to_half_precision(config, silent, tmp_path, method, resident):
    augment = AugmentConfig(hflip=0.5) if resident is None else AugmentConfig(auto_augment="rand-m5", erasing=0.3)
    config = replace(config, method=method, loader=replace(config.loader, resident=resident), augment=augment)
    cached = fit(replace(config, out=str(tmp_path / "cached")), console=silent)
    online = fit(replace(config, cache="off", out=str(tmp_path / "online")), console=silent)
    assert losses(cached) == pytest.approx(losses(online), rel=5e-3)
    assert len(losses(cached)) >= 6
    # The teacher comes back for the report.
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (cached, online)]
    assert metrics[0]["teacher"]["test"] == metrics[1]["teacher"]["test"]


def test_other_seeds_and_methods_share_the_cache_and_do_not_run_the_teacher_in_training(
    config, silent, tmp_path, monkeypatch
):
    fit(replace(config, out=str(tmp_path / "first")), console=silent)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.bin")}
    from crossdistill.distiller import Distiller

    teachers, alive = [], []
    forward, release = Distiller.forward, Distiller.release_teacher

    def watched_release(self):
        alive.append(weakref.ref(self.teacher.backbone))
        release(self)

    def watched_forward(self, *args):
        assert alive[0]() is None, "the teacher is still in memory"
        teachers.append(self.teacher)
        return forward(self, *args)

    monkeypatch.setattr(Distiller, "release_teacher", watched_release)
    monkeypatch.setattr(Distiller, "forward", watched_forward)
    fit(replace(config, method="kd", seed=5, out=str(tmp_path / "second")), console=silent)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.bin")} == stamps
    assert len(teachers) == 15
    # Its scores on the test split were kept as well.
    (scores,) = json.loads((tmp_path / "cache" / "teacher-scores.json").read_text()).values()
    for run in ("first", "second"):
        assert json.loads((tmp_path / run / "metrics.json").read_text())["teacher"] == scores
    assert set(teachers) == {None}


def test_an_interrupted_cached_run_ends_as_if_nothing_had_happened(config, silent, tmp_path, monkeypatch):
    config = replace(config, method="tests.training.stopping:StoppingRSD")
    whole = fit(replace(config, out=str(tmp_path / "whole")), console=silent)
    monkeypatch.setenv("STOP_AT", "7")
    from crossdistill.training.callbacks import Interrupted

    with pytest.raises(Interrupted):
        fit(replace(config, out=str(tmp_path / "cut")), console=silent)
    monkeypatch.delenv("STOP_AT")
    cut = fit(replace(config, out=str(tmp_path / "cut")), resume=True, console=silent)
    last = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, cut)]
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items())


def test_a_cache_of_other_views_is_refused_by_a_run(config, silent, tmp_path):
    fit(replace(config, out=str(tmp_path / "first")), console=silent)
    other = replace(config, augment=AugmentConfig(hflip=0.3), out=str(tmp_path / "second"))
    with pytest.raises(UserError, match=r"another transform: hflip was 0.0, is now 0.3"):
        fit(other, console=silent)
    shard = next((tmp_path / "cache").glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="was changed after it was written"):
        fit(replace(config, out=str(tmp_path / "third")), console=silent)


@pytest.mark.slow
def test_a_cache_with_more_is_used_by_those_that_need_less(config, silent, tmp_path, monkeypatch):
    """compare stores what all methods read, and runs the teacher once."""
    monkeypatch.chdir(tmp_path)
    config = replace(config, cache="auto", epochs=2, out=None, loader=replace(config.loader, max_train=128))
    methods = [Variant(name, name, {}) for name in ("kd", "fbt", "none")]
    compare(config, Axes(methods, [0]), tmp_path / "out", silent)
    (folder,) = (tmp_path / "runs" / "cache").iterdir()
    assert re.search(r"-stage3-\dx\d$", folder.name)
    assert len(list(folder.glob("*.bin"))) == 2
    # Finished runs are kept, and nothing is stored again for them.
    shutil.rmtree(tmp_path / "runs" / "cache")
    compare(config, Axes(methods, [0]), tmp_path / "out", silent)
    assert not (tmp_path / "runs" / "cache").exists()
    # One with another stage map cannot be used, and pooled maps take less room.
    dense = Variant("rsd{spatial=2}", "rsd", {"rsd": {"spatial": 2, "spatial_stages": [1]}})
    compare(config, Axes([dense], [0]), tmp_path / "out", silent)
    compare(config, Axes(methods[1:2], [1]), tmp_path / "out", silent)
    names = [folder.name for folder in (tmp_path / "runs" / "cache").iterdir()]
    assert len(names) == 2
    assert sum(name.endswith("-stage1-2x2") for name in names) == 1


def test_whole_maps_serve_a_method_that_pools_them(config, silent, tmp_path, monkeypatch):
    """Two methods that read one map whole and pooled have it stored once, whole."""
    monkeypatch.chdir(tmp_path)
    config = replace(config, cache="auto", epochs=2, out=None, loader=replace(config.loader, max_train=128))
    sides = [Variant(f"rsd{{spatial={n}}}", "rsd", {"rsd": {"spatial": n, "spatial_stages": [1]}}) for n in (2, 3)]
    compare(config, Axes(sides, [0]), tmp_path / "both", silent)
    (folder,) = (tmp_path / "runs" / "cache").iterdir()
    shutil.rmtree(folder)
    compare(config, Axes(sides[:1], [0]), tmp_path / "one", silent)
    (alone,) = (tmp_path / "runs" / "cache").iterdir()
    assert alone.name != folder.name
    losses = [read_run(tmp_path / out / "rsd_spatial=2-s0").curves["train/rsd_spatial"][0] for out in ("both", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_the_command_writes_and_fit_finds_it(teacher_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["--recipe", "demo", "--teacher", "null", "--teacher-checkpoint", str(teacher_run)]
    common += ["--loader.max-train", "128", "--loader.views", "2", "--cache-top-k", "4", "--epochs", "2"]
    assert main(["cache", *common]) == 0
    said = capsys.readouterr()
    assert "2 views of 128 images, 0 MiB, 2 of 2 shards to write" in said.err
    assert "cache: runs/cache/digits-test_resnet-" in said.out
    assert main(["fit", *common, "--method", "kd", "--cache", "auto", "--out", "run"]) == 0
    assert "0 of 2 shards to write" in capsys.readouterr().err
    assert main(["cache", *common, "--method", "none"]) == 2
    assert "uses no teacher, so there is nothing to store" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    assert main(["cache", *common, "--cache", "photos"]) == 2
    assert "is not empty and not a teacher cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ("off", "--cache is off, so there is nothing to write"),
        ("no", "--cache is off, so there is nothing to write"),
        ("/dev/null", "'/dev/null' is not a folder"),
        ("/dev/null/cache", "cannot write to '/dev/null/cache'"),
        ("file", "'file' is not a folder"),
    ],
)
def test_a_cache_that_cannot_be_written_is_refused(teacher_run, tmp_path, monkeypatch, capsys, cache, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    words = [
        "--recipe",
        "demo",
        "--teacher",
        "null",
        "--teacher-checkpoint",
        str(teacher_run),
        "--loader.max-train",
        "64",
    ]
    assert main(["cache", *words, "--cache", cache]) == 2
    assert message in capsys.readouterr().err
    if cache not in ("off", "no"):
        assert main(["fit", *words, "--cache", cache, "--method", "kd", "--out", "run"]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("text", ["{", '{"digits": {"name": "t"}}'])
def test_damaged_scores_of_the_teacher_are_refused_before_training(config, silent, tmp_path, text):
    path = tmp_path / "cache" / "teacher-scores.json"
    fit(replace(config, epochs=1, out=str(tmp_path / "first")), console=silent)
    path.write_text(text)
    with pytest.raises(UserError, match=r"teacher-scores\.json' is damaged: delete it, and the teacher is"):
        fit(replace(config, epochs=1, out=str(tmp_path / "second")), console=silent)
    assert not (tmp_path / "second").exists()
    path.unlink()
    fit(replace(config, epochs=1, out=str(tmp_path / "second")), console=silent)
