"""One teacher, and several as one."""

import copy

import numpy as np
import pytest
import torch

import crossdistill as cd
from crossdistill.errors import UserError
from crossdistill.teacher import Ensemble
from tests.pairs import build


@pytest.fixture
def batch():
    return torch.randn(6, 3, 32, 32), torch.arange(6) % 5


def make(method="kd", weights=None, **options):
    teachers = [build("plain_vit"), build("mlp")]
    return cd.create_distiller(method, student=build("cnn"), teacher=teachers, teacher_weights=weights, options=options)


@pytest.mark.parametrize("method", ["kd", "rsd", "ofa", "hcd"])
@pytest.mark.parametrize("weights", [None, [0.2, 0.8], "confidence"])
def test_methods_learn_from_several(method, weights, batch):
    distiller = make(method, weights).train()
    step = distiller(*batch)
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert all(p.grad is not None for p in distiller.method.parameters())
    assert not any(p.requires_grad for member in distiller.teacher.members for p in member.parameters())
    assert not distiller.teacher.members[0].backbone.model.training
    assert all(name.startswith(("student.", "method.", "balance.")) for name in distiller.state_dict())


def test_predictions_are_mixed_and_embeddings_stand_side_by_side(batch):
    images, _ = batch
    distiller = make(weights=[1.0, 3.0])
    outputs = [member(images) for member in distiller.teacher.members]
    mixed = distiller.teacher(images)
    expected = 0.25 * outputs[0].logits.softmax(1) + 0.75 * outputs[1].logits.softmax(1)
    torch.testing.assert_close(mixed.logits.softmax(1), expected)
    torch.testing.assert_close(mixed.embedding, torch.cat([o.embedding for o in outputs], dim=1))
    assert distiller.teacher.spec.embedding_dim == 64 + 24


def test_confidence_trusts_the_surer_teacher(batch):
    images, _ = batch
    distiller = make(weights="confidence")
    with torch.no_grad():
        distiller.teacher.members[0].backbone.model.head.weight.mul_(200)
    sure = distiller.teacher.members[0](images).logits
    shares = [m(images).logits.log_softmax(1).amax(1).exp() for m in distiller.teacher.members]
    weight = shares[0] / (shares[0] + shares[1])
    expected = weight.unsqueeze(1) * sure.softmax(1)
    expected += (1 - weight).unsqueeze(1) * distiller.teacher.members[1](images).logits.softmax(1)
    torch.testing.assert_close(distiller.teacher(images).logits.softmax(1), expected)
    assert (weight > 0.6).all()


def test_the_same_teacher_twice_is_that_teacher(batch):
    images, targets = batch
    teacher, student = build("plain_vit"), build("cnn").eval()
    one = cd.create_distiller("kd", student=student, teacher=teacher, options={"temperature": 2.0}).eval()
    two = cd.create_distiller("kd", student=student, teacher=[teacher, teacher], options={"temperature": 2.0}).eval()
    torch.testing.assert_close(one(images, targets).loss, two(images, targets).loss)


@pytest.mark.parametrize(
    ("method", "options", "weights", "message"),
    [
        ("fbt", {}, None, "reads the teacher's stages, and several teachers have none in common"),
        ("rsd", {"spatial": 2}, None, "several teachers have none in common"),
        ("kd", {}, [1.0], "must have one number for each of 2 teachers"),
        ("kd", {}, [0.0, 0.0], "must be numbers >= 0, not all 0"),
        ("kd", {}, "sure", "must be 'confidence'"),
    ],
)
def test_what_cannot_work_is_refused(method, options, weights, message):
    with pytest.raises(cd.UserError, match=message):
        make(method, weights, **options)


def test_an_ensemble_without_common_classes_has_an_embedding(batch):
    images, targets = batch
    teachers = [build("plain_vit"), build("mlp", classes=0)]
    distiller = cd.create_distiller("rsd", student=build("cnn"), teacher=teachers)
    assert distiller.teacher.spec.num_classes == 0
    output = distiller.teacher(images)
    assert output.logits is None
    assert output.embedding.shape == (6, 64 + 24)
    distiller(images, targets).loss.backward()
    with pytest.raises(cd.UserError, match="has no classifier"):
        cd.create_distiller("kd", student=build("cnn"), teacher=teachers)


def test_the_inner_network_in_train_mode_does_not_change_the_teacher():
    student, teacher = build("plain_vit"), build("cnn")
    distiller = cd.create_distiller("kd", student=student, teacher=teacher)
    teacher.model.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distiller(torch.randn(4, 3, 32, 32), torch.arange(4))
    assert not any(module.training for module in teacher.modules())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_weights_may_be_an_array():
    pair = [build("cnn"), build("mlp")]
    student = build("plain_vit")
    images = torch.randn(2, 3, 32, 32)
    arrays = [Ensemble(pair, student, weights)(images).logits for weights in (np.array([0.3, 0.7]), [0.3, 0.7])]
    assert torch.equal(*arrays)


@pytest.mark.parametrize("method", ["kd", "rsd", "hcd", "ofa", "fitnet", "rkd"])
def test_a_half_precision_teacher_teaches_a_float32_student(method, batch):
    images, targets = batch
    whole = build("cnn")
    narrow = copy.deepcopy(whole).to(torch.bfloat16)
    losses = []
    for teacher in (whole, narrow):
        torch.manual_seed(0)
        student = build("plain_vit")
        distiller = cd.create_distiller(method, student=student, teacher=teacher)
        step = distiller(images, targets)
        step.loss.backward()
        losses.append(step.loss.item())
        assert {p.dtype for p in distiller.parameters() if p.requires_grad} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_fbt_refuses_to_train_through_a_half_precision_teacher():
    with pytest.raises(UserError, match="are bfloat16; gradients flow through its last stages"):
        cd.create_distiller("fbt", student=build("cnn"), teacher=build("plain_vit").to(torch.bfloat16))
