import json
import re
from dataclasses import replace

import pytest
import timm
import torch
import yaml

from crossdistill import UserError, load_backbone
from crossdistill.config import AugmentConfig, EngineConfig, LoaderConfig, ModelConfig, OptimConfig, RunConfig
from crossdistill.data import load_data
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.transforms import eval_transform
from crossdistill.report.measure import score
from crossdistill.report.records import read_run
from crossdistill.training.fit import fit
from crossdistill.training.inputs import check_counts


@pytest.fixture(scope="module")
def rsd_run(quick, silent, teacher_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("rsd") / "run"
    config = replace(
        quick,
        method="rsd",
        epochs=8,
        teacher_checkpoint=str(teacher_run),
        loader=LoaderConfig(batch_size=64),
        out=str(out),
    )
    return fit(config, console=silent)


def test_the_teacher_learned(teacher_run):
    assert score(read_run(teacher_run)) > 85


def test_a_finished_folder_is_whole(rsd_run):
    expected = {"config.yaml", "environment.json", "metrics.json", "samples.json", "report.html", "config.json"}
    assert expected | {"student.safetensors", "logs", "checkpoints"} <= {path.name for path in rsd_run.iterdir()}
    assert {path.name for path in (rsd_run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list((rsd_run / "logs" / "tb").glob("events*"))
    metrics = json.loads((rsd_run / "metrics.json").read_text())
    assert metrics["student"]["test"]["images"] == 540
    assert metrics["student"]["test"]["top1"] > 30
    assert metrics["teacher"]["test"]["top1"] > 85
    assert metrics["training"]["training_only_parameters"] == 64 * 128 + 2 * 128 + 128 * 96
    run = read_run(rsd_run)
    assert {
        "train/task",
        "train/rsd",
        "train/loss",
        "balance/rsd",
        "train/lr",
        "train/images_per_second",
        "val/top1",
    } <= set(run.curves)
    assert len(run.curves["val/top1"]) == 8
    assert run.curves["train/rsd"][-1][1] < run.curves["train/rsd"][0][1]


def test_timm_opens_the_student_and_it_scores_what_was_reported(rsd_run):
    student = timm.create_model(f"local-dir:{rsd_run}", pretrained=True).eval()
    assert student.num_classes == 10
    ours = load_backbone(rsd_run).eval()
    data = load_data("digits", LoaderConfig())
    right = 0
    with torch.no_grad():
        transform = eval_transform(AugmentConfig(), ours.spec, 32)
        for images, targets, *_ in evaluation_loader(data.test, transform, 128):
            logits = student(images)
            torch.testing.assert_close(logits, ours(images).logits)
            right += int((logits.argmax(dim=1) == targets).sum())
    assert 100 * right / len(data.test) == pytest.approx(score(read_run(rsd_run)), abs=1e-3)
    assert json.loads((rsd_run / "config.json").read_text())["label_names"] == [str(d) for d in range(10)]


def test_the_page_stands_alone(rsd_run):
    page = (rsd_run / "report.html").read_text()
    assert page.count("<svg") == 1
    assert page.count("data:image/png;base64") == 12
    fetched = re.findall(r"(?:src|href)=[\"'](?!data:|#)([^\"']+)", page)
    assert not fetched
    assert "training-only parameters, removed afterwards: 20,736" in page


def test_checkpoints_hold_what_trains_and_no_teacher(rsd_run):
    stored = torch.load(rsd_run / "checkpoints" / "last.ckpt", weights_only=True)
    names = set(stored["state_dict"])
    assert any(name.startswith("distiller.student.") for name in names)
    assert any(name.startswith("distiller.method.decoupler.") for name in names)
    balance = {name for name in names if name.startswith("distiller.balance.")}
    assert all(name.startswith(("distiller.student.", "distiller.method.")) for name in names - balance)
    trained = sum(len(group["params"]) for group in stored["optimizer_states"][0]["param_groups"])
    assert trained == sum("running" not in name and "num_batches" not in name for name in names - balance)


def test_a_run_can_be_started_again_from_its_config(rsd_run):
    stored = yaml.safe_load((rsd_run / "config.yaml").read_text())
    assert stored["epochs"] == 8
    assert stored["options"]["rsd"]["kappa"] == "auto"
    assert stored["augment"]["crop"] == "padded"
    assert set(stored) == set(RunConfig.__dataclass_fields__)


def weights(run):
    return load_backbone(run).model.state_dict()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def test_same_seed_same_student_other_seed_another(quick, silent, tmp_path):
    runs = [
        fit(replace(quick, method="none", epochs=1, seed=seed, out=str(tmp_path / name)), console=silent)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


@pytest.mark.parametrize(
    "change",
    [
        {"augment": AugmentConfig(mixup=0.2, cutmix=1.0, auto_augment="rand-m5", erasing=0.2)},
        {"optim": OptimConfig(ema=0.9, clip_grad=1.0, label_smoothing=0.1, schedule="tanh")},
        {"optim": OptimConfig(name="sgd", lr=0.1, schedule="none")},
        {"engine": EngineConfig(accelerator="cpu", precision="bf16", channels_last=True, accumulate=2, threads=1)},
        {"loader": LoaderConfig(batch_size=512, max_train=100)},
    ],
    ids=["mixing", "ema", "sgd", "bf16", "batch over set"],
)
def test_settings_run(quick, silent, teacher_run, tmp_path, change):
    config = replace(quick, method="rsd", teacher_checkpoint=str(teacher_run), out=str(tmp_path / "run"), **change)
    run = read_run(fit(config, console=silent))
    assert all(value == value for _, value in run.curves["train/loss"])
    if "ema" in str(change.get("optim", "")) and config.optim.ema:
        stored = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        kept = weights(tmp_path / "run")
        for name, value in kept.items():
            assert torch.equal(value, stored[f"ema.module.model.{name}"])


def test_the_step_schedule_divides_by_ten(quick, silent, tmp_path):
    optim = OptimConfig(name="sgd", lr=0.1, schedule="step", decay_epochs=2, warmup_epochs=0)
    loader = LoaderConfig(batch_size=64, max_train=64)
    rates = {}
    for epochs in (1, 3, 5):
        out = str(tmp_path / str(epochs))
        fit(replace(quick, method="none", epochs=epochs, optim=optim, loader=loader, out=out), console=silent)
        state = torch.load(tmp_path / str(epochs) / "checkpoints" / "last.ckpt", weights_only=True)
        rates[epochs] = state["optimizer_states"][0]["param_groups"][0]["lr"]
    assert rates == pytest.approx({1: 0.1, 3: 0.01, 5: 0.001})


def test_a_student_with_a_small_stem_opens_in_timm(quick, silent, tmp_path):
    config = replace(
        quick,
        student="test_efficientnet",
        method="none",
        epochs=1,
        model=ModelConfig(stem="small"),
        out=str(tmp_path / "run"),
    )
    config = replace(config, loader=LoaderConfig(batch_size=32, max_train=64))
    out = fit(config, console=silent)
    student = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    ours = load_backbone(out).eval()
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(student(images), ours(images).logits)
    assert student.conv_stem.stride == (1, 1)


def refused(match, config, silent, **kwargs):
    with pytest.raises(UserError, match=match):
        fit(config, console=silent, **kwargs)


def test_more_processes_than_devices_are_refused(quick, silent, tmp_path, monkeypatch):
    """Under torchrun, one device would train four times into one folder."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = replace(quick, method="none", out=str(tmp_path / "run"))
    refused(r"torchrun started 4 processes, .* is 1: give --engine.devices 4", config, silent)


def test_wrong_teachers_are_refused_before_training(quick, silent, teacher_run, tmp_path):
    out = {"out": str(tmp_path / "run")}
    fresh = replace(quick, method="kd", teacher="test_resnet", **out)
    refused("chance is .*fine-tune it|chance is .*classifier appears untrained", fresh, silent)
    refused(
        "holds a 'test_resnet', but --teacher is 'test_vit'",
        replace(quick, teacher="test_vit", method="kd", teacher_checkpoint=str(teacher_run), **out),
        silent,
    )
    refused("needs a teacher", replace(quick, method="kd", **out), silent)
    # Nothing that was refused has left a run behind.
    assert not (tmp_path / "run" / "config.yaml").exists()
    fit(replace(fresh, trust_teacher=True, epochs=1), console=silent)


def test_a_folder_that_is_taken_is_not_written(quick, silent, rsd_run):
    before = (rsd_run / "metrics.json").read_text()
    refused("already holds a run: continue it with --resume", replace(quick, method="none", out=str(rsd_run)), silent)
    refused(
        "method is now 'none' and was 'rsd'",
        replace(quick, method="none", out=str(rsd_run), epochs=8, loader=LoaderConfig(batch_size=64)),
        silent,
        resume=True,
    )
    assert (rsd_run / "metrics.json").read_text() == before


def test_mixing_needs_an_even_batch_in_each_process():
    """With fewer images than a batch, each process has one batch of its share."""
    config = RunConfig(augment=AugmentConfig(mixup=0.2), loader=LoaderConfig(batch_size=8))
    data = load_data("digits", LoaderConfig(max_train=10))
    check_counts(config, data, 1)
    with pytest.raises(UserError, match="the one batch of 5 is odd"):
        check_counts(config, data, 2)
    small = load_data("digits", LoaderConfig(max_train=5))
    check_counts(config, small, 2)
    with pytest.raises(UserError, match="the one batch of 5 is odd"):
        check_counts(config, small, 1)


def test_a_short_run_is_not_all_warm_up(tmp_path, quick, silent):
    """Of one step, the only one has the learning rate."""
    losses = []
    for number, lr in enumerate((1e-6, 1e-2)):
        loader = LoaderConfig(batch_size=64, max_train=64)
        out = tmp_path / str(number)
        config = replace(quick, method="none", epochs=1, loader=loader, optim=OptimConfig(lr=lr), out=str(out))
        losses.append(read_run(fit(config, console=silent)).metrics["student"]["test"]["loss"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-2)
