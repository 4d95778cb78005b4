import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from crossdistill import UserError, load_backbone
from crossdistill.config import EngineConfig, LoaderConfig, OptimConfig
from crossdistill.training.fit import fit


@pytest.fixture
def config(quick, tmp_path):
    """Five batches an epoch, two epochs."""
    return replace(quick, method="tests.training.diverging:Diverging", out=str(tmp_path / "run"))


def engine(**changes):
    return EngineConfig(accelerator="cpu", threads=1, **{"log_every": 2, **changes})


@pytest.mark.parametrize(
    ("bad_at", "wrong", "settings", "step", "epoch"),
    [
        (1, "nan", {}, 1, 1),
        (8, "inf", {}, 8, 2),
        # The last batch of an epoch, and a batch between two rows.
        (5, "nan", {"log_every": 100}, 5, 1),
        (7, "nan", {"accumulate": 2}, 4, 2),
    ],
)
def test_a_term_that_is_not_finite_stops_the_run(
    config, silent, tmp_path, monkeypatch, bad_at, wrong, settings, step, epoch
):
    monkeypatch.setenv("BAD_AT", str(bad_at))
    monkeypatch.setenv("WRONG", wrong)
    with pytest.raises(UserError, match=rf"the term 'mine' is {wrong} in step {step} \(epoch {epoch}\)"):
        fit(replace(config, engine=engine(**settings)), console=silent)
    found = json.loads((tmp_path / "run" / "not-finite.json").read_text())
    assert (found["term"], found["step"], len(set(found["images"]))) == ("mine", step, 64)
    assert not (tmp_path / "run" / "student.safetensors").exists()
    kept = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert kept.exists() == (epoch == 2)
    if kept.exists():
        stored = torch.load(kept, weights_only=True)
        assert stored["global_step"] == -(-5 // settings.get("accumulate", 1))
        assert all(torch.isfinite(value).all() for value in stored["state_dict"].values())


def test_weights_beyond_all_measure_are_not_stored(quick, silent, tmp_path):
    optim = OptimConfig(name="sgd", lr=1e30, warmup_epochs=0)
    with pytest.raises(UserError, match=r"training stopped: .*(is nan|is inf|has become)"):
        fit(replace(quick, method="none", optim=optim, out=str(tmp_path / "run")), console=silent)
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    # Finite, and learned in the last step before the checkpoint.
    config = replace(quick, method="none", loader=LoaderConfig(batch_size=64, max_train=64), optim=optim)
    with pytest.raises(UserError, match=r"the weight 'distiller.student.model.* has become .* by step 1 \(epoch 1\)"):
        fit(replace(config, out=str(tmp_path / "one")), console=silent)
    assert not list((tmp_path / "one").rglob("*.ckpt"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_can_be_left_out(config, tmp_path, monkeypatch, accumulate):
    monkeypatch.setenv("BAD_AT", "3,4")
    said = io.StringIO()
    fit(replace(config, engine=engine(on_nan="skip", accumulate=accumulate)), console=Console(file=said))
    assert "step is left out (batches left out so far: 2)" in said.getvalue()
    weights = load_file(tmp_path / "run" / "student.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())
    stored = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    left_out = 2 if accumulate == 1 else 1
    steps = {int(state["step"]) for state in stored["optimizer_states"][0]["state"].values()}
    assert steps == {stored["global_step"] - left_out}


def test_leaving_out_nothing_changes_nothing(quick, silent, tmp_path):
    for on_nan in ("stop", "skip"):
        optim = OptimConfig(lr=2e-3, ema=0.9)
        fit(
            replace(quick, method="none", optim=optim, engine=engine(on_nan=on_nan), out=str(tmp_path / on_nan)),
            console=silent,
        )
    one, other = (load_file(tmp_path / on_nan / "student.safetensors") for on_nan in ("stop", "skip"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ten_in_a_row_stop(quick, config, silent, tmp_path, monkeypatch):
    monkeypatch.setenv("BAD_AT", ",".join(map(str, range(2, 30))))
    config = replace(config, epochs=3, engine=engine(on_nan="skip"))
    with pytest.raises(UserError, match=r"the term 'mine' is nan in step 11 \(epoch 3\).*10 batches were left out"):
        fit(config, console=silent)


# Weights and statistics that are not finite are refused when they are read; these give such outputs.
@pytest.mark.parametrize("wrong", [{"running_mean": -3e38, "running_var": 0.0}, {"weight": 3e38, "bias": 3e38}])
@pytest.mark.parametrize("changes", [{}, {"cache": "cache"}, {"trust_teacher": True}, {"method": "rsd"}])
def test_a_teacher_whose_output_is_not_finite_is_refused(
    quick, silent, teacher_run, tmp_path, monkeypatch, wrong, changes
):
    monkeypatch.chdir(tmp_path)
    teacher = load_backbone(teacher_run)
    weights = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    for name, value in wrong.items():
        weights[f"layer4.0.bn2.{name}"][:] = value
    save_file(weights, "teacher.safetensors")
    config = replace(quick, teacher="test_resnet", teacher_checkpoint="teacher.safetensors", method="kd", out="run")
    with pytest.raises(UserError, match=r"teacher 'test_resnet' returns (NaN|inf): its embedding for \d+ of"):
        fit(replace(config, **changes), console=silent)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()
