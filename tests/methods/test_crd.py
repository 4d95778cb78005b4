"""The memory of CRD: what is stored, whom it is compared with, and how it survives."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy

import crossdistill as cd
from crossdistill.config import AugmentConfig, EngineConfig, OptimConfig
from crossdistill.training.fit import fit
from crossdistill.training.module import DistillModule
from tests.processes import in_two_processes


def make(**options):
    torch.manual_seed(0)
    student = cd.create_backbone("test_vit", 5, 32, patch_size=8)
    teacher = cd.create_backbone("test_convnext", 5, 32)
    return cd.create_distiller("crd", student=student, teacher=teacher, options={"images": 24, **options}).train()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    index = torch.randperm(24, generator=generator)[:8]
    return torch.randn(8, 3, 32, 32, generator=generator), index % 5, index


def test_the_memory_holds_the_running_embeddings_of_the_seen_images():
    distiller = make(momentum=0.25)
    method = distiller.method
    before = method.student_memory.clone()
    images, targets, index = batch(0)
    student = F.normalize(method.project["student"](distiller.student(images).embedding), dim=1)
    distiller(images, targets, index=index)
    expected = F.normalize(0.25 * before[index] + 0.75 * student, dim=1)
    torch.testing.assert_close(method.student_memory[index], expected)
    assert method.labels[index].equal(targets)
    others = [i for i in range(24) if i not in index]
    assert method.student_memory[others].equal(before[others])
    assert method.labels[others].eq(-1).all()


def test_images_of_the_own_class_are_no_negatives():
    distiller = make()
    images, _, index = batch(0)
    same = torch.full((8,), 3)
    distiller.method.labels.fill_(3)
    rejected = distiller(images, same, index=index).terms["crd"]
    distiller.method.student_memory.normal_()
    kept = distiller(images, same, index=index).terms["crd"]
    assert torch.isfinite(rejected)
    assert torch.isfinite(kept)
    distiller.method.labels.fill_(1)
    assert distiller(images, same, index=index).terms["crd"] > kept


def test_negatives_move_over_the_whole_training_set():
    method = make(negatives=5).method
    seen = set()
    for step in range(40):
        method.steps.fill_(step)
        chosen = method._chosen()
        assert len(set(chosen.tolist())) == 5
        seen |= set(chosen.tolist())
    assert seen == set(range(24))


def test_evaluation_does_not_touch_the_memory():
    distiller = make().eval()
    before = {name: buffer.clone() for name, buffer in distiller.method.named_buffers()}
    images, targets, index = batch(0)
    assert distiller(images, targets, index=index).loss.isfinite()
    assert all(buffer.equal(before[name]) for name, buffer in distiller.method.named_buffers())


def _memory(rank):
    distiller = make()
    for step in range(2):
        images, targets, index = batch(step)
        own = slice(rank * 4, rank * 4 + 4)
        distiller(images[own], targets[own], index=index[own])
    return dict(distiller.method.named_buffers())


def test_two_processes_store_what_one_stores():
    distiller = make()
    for step in range(2):
        distiller(*batch(step)[:2], index=batch(step)[2])
    for found in in_two_processes(_memory):
        for name, buffer in distiller.method.named_buffers():
            torch.testing.assert_close(found[name].to(buffer.dtype), buffer, rtol=1e-5, atol=1e-5)


def test_the_number_of_images_and_their_index_are_needed():
    models = {"student": cd.create_backbone("test_vit", 5), "teacher": cd.create_backbone("test_vit", 5)}
    with pytest.raises(cd.UserError, match="images is not set"):
        cd.create_distiller("crd", **models)
    images, targets, _ = batch(0)
    with pytest.raises(ValueError, match="pass index"):
        make()(images, targets)


def test_a_run_sets_the_number_of_images_and_refuses_mixed_ones(quick, teacher_run, tmp_path, silent):
    config = replace(quick, method="crd", teacher_checkpoint=str(teacher_run), out=str(tmp_path / "run"))
    out = fit(config, console=silent)
    stored = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len(stored["distiller.method.student_memory"]) == 320
    assert stored["distiller.method.labels"].ge(0).all()
    mixed = replace(config, augment=replace(config.augment, mixup=0.2), out=str(tmp_path / "mixed"))
    with pytest.raises(cd.UserError, match="cannot be mixed: turn mixup off"):
        fit(mixed, console=silent)


def test_a_temperature_whose_exponentials_overflow_is_refused():
    with pytest.raises(cd.UserError, match=r"temperature is 0\.01; it must be greater than or equal to 0\.02"):
        make(temperature=0.01)


def test_the_memory_is_not_sent_between_processes_in_every_step():
    """Lightning lets DDP wrap the module after `configure_model`."""
    module = DistillModule(make(), OptimConfig(), EngineConfig(), AugmentConfig(), epochs=1, seed=0)
    module._trainer = SimpleNamespace(world_size=2, strategy=DDPStrategy())
    module.configure_model()
    ignored = set(module._ddp_params_and_buffers_to_ignore)
    assert {"distiller.method.student_memory", "distiller.method.teacher_memory"} <= ignored
    assert not any(name.startswith("distiller.student.") for name in ignored)
    assert not ignored & {name for name, _ in module.named_parameters()}
