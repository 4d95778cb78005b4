"""The lists of methods in tests and benchmarks hold every method."""

import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import crossdistill as cd
from benchmarks import gradients, pairs
from crossdistill.cli import main
from crossdistill.methods import METHODS, NONE, choose_method
from tests.pairs import METHODS as TESTED

STORED_LATER = {"fitnet", "cc", "rkd", "crd"}
"""Methods that are newer than the stored values of `python -m benchmarks.numbers`."""


def test_every_method_is_in_the_matrix_of_families():
    names = {name for name, _ in TESTED.values()}
    assert {one for name in names for one in name.split("+")} == {NONE, *METHODS}
    for name, options in TESTED.values():
        choose_method(name, options)


def test_the_stored_numbers_are_of_every_method():
    # Read, not imported: the module sets variables of the environment.
    text = (Path(pairs.__file__).parent / "numbers.py").read_text()
    stored = set(re.findall(r'"--method", "(\w+)"', text)) - {NONE}
    assert stored | STORED_LATER == set(METHODS)


@pytest.mark.parametrize("method", pairs.METHODS)
def test_every_method_can_be_timed(method):
    bench = pairs.Bench(pairs.MODELS[32]["cnn"], pairs.TEACHERS[32]["vit"], 32, 4, "cpu", "32")
    with tempfile.TemporaryDirectory() as folder:
        for cache in (None, bench.stored(method, Path(folder))):
            bench.case(method, method, cache).step()


def test_the_benchmarks_time_every_method():
    assert {method for method, _ in pairs.METHODS.values()} == set(METHODS)


def test_the_gradients_of_the_terms_are_those_of_their_own_backward_passes():
    student = cd.create_backbone("test_resnet", num_classes=5, img_size=32)
    teacher = cd.create_backbone("test_vit", num_classes=5, img_size=32)
    distiller = cd.create_distiller("kd", student=student, teacher=teacher, options={"temperature": 2.0, "weight": 3.0})
    measured = gradients.TermGradients(every=1)
    module = SimpleNamespace(distiller=distiller)
    measured.on_fit_start(None, module)
    step = distiller(torch.rand(4, 3, 32, 32), torch.arange(4))
    measured.on_before_backward(SimpleNamespace(global_step=0), module, step.loss)
    own = {}
    for name, factor in (("task", 1.0), ("kd", 3.0)):
        student.zero_grad()
        (factor * step.terms[name]).backward(retain_graph=True)
        own[name] = torch.cat([p.grad.flatten() for p in student.parameters()])
    norm, cosine = measured.rows[0]["kd"]
    assert norm == pytest.approx(float(own["kd"].norm() / own["task"].norm()), rel=1e-5)
    assert cosine == pytest.approx(float(torch.cosine_similarity(own["kd"], own["task"], dim=0)), abs=1e-5)
    assert "| kd | " + f"{norm:.2f} ({cosine:+.2f})" in "\n".join(gradients.as_markdown(measured.rows))


def test_measuring_the_gradients_does_not_change_the_training(tmp_path, teacher_run, monkeypatch, capsys):
    flags = ["--recipe", "demo", "--teacher", "null", "--teacher-checkpoint", str(teacher_run)]
    flags += ["--trust-teacher", "true", "--method", "rsd", "--loader.max-train", "96", "--epochs", "1"]
    assert main(["fit", *flags, "--out", str(tmp_path / "plain")]) == 0
    monkeypatch.setattr("sys.argv", ["gradients", "--every", "1", *flags, "--out", str(tmp_path / "measured")])
    gradients.main()
    assert "| task | 1.00 (+1.00) |" in capsys.readouterr().out
    plain, measured = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "measured")
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(measured[name], tensor, rtol=0, atol=0)
