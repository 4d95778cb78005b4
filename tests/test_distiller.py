import copy

import pytest
import torch
import torch.nn.functional as F

import crossdistill as cd
from crossdistill.methods import choose_method
from crossdistill.methods.rsd import RSDOptions
from crossdistill.teacher import renormalisation
from tests.pairs import FAMILIES, METHODS, build


@pytest.fixture
def batch():
    return torch.randn(8, 3, 32, 32), torch.arange(8) % 5


@pytest.fixture(scope="module")
def models():
    """Each family once as a student and once as a teacher; students are copied before they train."""
    torch.manual_seed(0)
    return {family: (build(family), build(family)) for family in FAMILIES}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("teacher", FAMILIES)
@pytest.mark.parametrize("student", FAMILIES)
def test_every_pair_of_families_learns(models, student, teacher, method, batch):
    images, targets = batch
    name, options = METHODS[method]
    frozen = models[teacher][1]
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    # The balance would raise the loss from step to step.
    distiller = cd.create_distiller(
        name, student=copy.deepcopy(models[student][0]), teacher=frozen, options=options, balance=None
    )
    distiller.train()
    optimizer = torch.optim.Adam(distiller.parameters(), 1e-3)
    losses: list[float] = []
    # The first steps may raise the loss of some pairs: most are done after three.
    while len(losses) < 3 or (len(losses) < 100 and losses[-1] > 0.98 * losses[0]):
        step = distiller(images, targets, index=2 * torch.arange(8))
        assert set(step.terms) == {"task", *distiller.weights}
        assert all(term.ndim == 0 and torch.isfinite(term) for term in step.terms.values())
        optimizer.zero_grad()
        step.loss.backward()
        if distiller.method is not None:
            assert all(p.grad is not None for p in distiller.method.parameters())
        optimizer.step()
        losses.append(step.loss.item())
    assert losses[-1] <= 0.98 * losses[0]
    assert all(torch.equal(before[key], value) for key, value in frozen.state_dict().items())
    assert all(p.grad is None for p in frozen.parameters())


def test_the_teacher_is_frozen_and_no_submodule(batch):
    distiller = cd.create_distiller("rsd", student=build("cnn"), teacher=build("plain_vit"))
    distiller.train()
    assert distiller.student.training
    assert not distiller.teacher.training
    assert not distiller.teacher.backbone.model.training
    assert not any(p.requires_grad for p in distiller.teacher.parameters())
    kept = [*distiller.state_dict(), *(name for name, _ in distiller.named_parameters())]
    assert kept
    assert all(name.startswith(("student.", "method.", "balance.")) for name in kept)
    distiller.to(torch.float64)
    assert next(distiller.teacher.parameters()).dtype == torch.float64


def test_weights_are_applied_once_and_only_to_the_loss(batch):
    distiller = cd.create_distiller(
        "rsd",
        student=build("cnn"),
        teacher=build("plain_vit"),
        options={"weight": 0.3},
        task_weight=2.0,
        label_smoothing=0.1,
        balance=None,
    ).eval()
    images, targets = batch
    step = distiller(images, targets)
    expected = F.cross_entropy(step.logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(step.terms["task"], expected)
    torch.testing.assert_close(step.loss, 2.0 * expected + 0.3 * step.terms["rsd"])


def test_soft_targets_are_taken_as_meant(batch):
    images, targets = batch
    distiller = cd.create_distiller("kd", student=build("cnn"), teacher=build("mlp"), label_smoothing=0.1).eval()
    soft = F.one_hot(targets, 5).float().lerp(torch.full((8, 5), 0.2), 0.3)
    step = distiller(images, soft)
    torch.testing.assert_close(step.terms["task"], F.cross_entropy(step.logits, soft))


def test_stored_teacher_outputs_replace_the_teacher(batch):
    images, targets = batch
    distiller = cd.create_distiller("rsd", student=build("cnn"), teacher=build("plain_vit")).eval()
    calls = []
    distiller.teacher.register_forward_hook(lambda *args: calls.append(1))
    live = distiller(images, targets)
    stored = distiller.teacher(images)
    calls.clear()
    replayed = distiller(images, targets, teacher_output=stored)
    assert not calls
    torch.testing.assert_close(live.loss, replayed.loss)


def test_each_model_sees_its_own_normalisation_and_size(batch):
    student = cd.create_backbone("regnety_002", 5, 32)
    teacher = cd.create_backbone("test_vit", 5, 48)
    distiller = cd.create_distiller("kd", student=student, teacher=teacher).eval()
    assert student.spec.mean != teacher.spec.mean
    pixels = torch.rand(2, 3, 32, 32)

    def normalised(spec):
        return (pixels - torch.tensor(spec.mean).view(1, 3, 1, 1)) / torch.tensor(spec.std).view(1, 3, 1, 1)

    seen = distiller.teacher.prepare(normalised(student.spec))
    assert seen.shape == (2, 3, 48, 48)
    expected = F.interpolate(normalised(teacher.spec), (48, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    scale, shift = renormalisation((0.5,), (0.5,), (0.5,), (0.5,))
    assert scale.item() == 1
    assert shift.item() == 0


def test_dropping_the_decoupler_leaves_a_plain_model(batch):
    student, teacher = cd.create_backbone("resnet18", 5, 32), cd.create_backbone("test_vit", 5, 32)
    distiller = cd.create_distiller("rsd", student=student, teacher=teacher)
    expected = 2 * 512 * 512 + 2 * 1024 + 1024 * 64
    assert sum(p.numel() for p in distiller.method.parameters()) == expected
    assert distiller.student.model.__class__.__name__ == "ResNet"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rds", {}, "unknown method 'rds'; did you mean 'rsd'"),
        ("rsd", {"kapa": 1}, "did you mean 'kappa'"),
        ("none", {"kappa": 1}, "has no options"),
        ("rsd", {"kappa": -1.0}, "kappa is -1"),
        ("rsd", {"on": "stage"}, "on is 'stage'; it must be 'embedding', 'logits' or 'stages'"),
        ("hcd", {"stages": [2, 1]}, "rising numbers from 1 to 4"),
        ("hcd", {"stages": []}, r"stages is .*; it must be rising numbers from 1 to 4"),
        ("rsd", {"spatial_stages": [2, 2]}, r"spatial_stages is .2, 2.; it must be rising numbers"),
        ("hcd", {"parts": 2.5}, "parts is 2.5; it must be a whole number"),
        ("ofa", {"eps": 0.5}, "eps is 0.5"),
        ("rsd", {"decoupler": "none"}, "student's embedding has 96 and the teacher's 64"),
        ("kd", {"temperature": 0.0}, "temperature is 0.0; it must be greater than 0"),
        ("dkd", {"temperature": None}, "temperature is None; it must be a number"),
        ("dkd", {"beta": -1.0}, "beta is -1.0; it must be greater than or equal to 0"),
        ("dist", {"gamma": float("inf")}, "gamma is inf; it must be finite"),
        ("kd", RSDOptions(), "options is a RSDOptions; method 'kd' takes KDOptions"),
        ("kd", 3, "options is 3; it must be a dict or a KDOptions"),
        ("tests.nowhere:Method", {}, "cannot be imported"),
    ],
)
def test_wrong_methods_and_options_are_answered(method, options, message):
    with pytest.raises(cd.UserError, match=message):
        cd.create_distiller(method, student=build("cnn"), teacher=build("plain_vit"), options=options)


def test_pairs_that_cannot_work_are_refused():
    student = build("cnn")
    with pytest.raises(
        cd.UserError, match=r"reads the teacher's logits, but .* has 7 classes and the student has 5: use a .*rsd"
    ):
        cd.create_distiller("kd", student=student, teacher=build("mlp", classes=7))
    with pytest.raises(cd.UserError, match="3 input channels and the student 1"):
        cd.create_distiller("kd", student=build("cnn", in_chans=1), teacher=build("mlp"))
    with pytest.raises(cd.UserError, match="same object"):
        cd.create_distiller("kd", student=student, teacher=student)
    with pytest.raises(cd.UserError, match="needs a teacher"):
        cd.create_distiller("kd", student=student)


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize("teacher", FAMILIES)
def test_a_teacher_without_the_students_classes_teaches_by_its_embedding(teacher, classes, batch):
    headless = build(teacher, classes=classes)
    assert headless.spec.num_classes == classes
    for method, options in (("rsd", {}), ("rsd", {"spatial": 2}), ("fbt", {"ofa": False})):
        distiller = cd.create_distiller(method, student=build("cnn"), teacher=headless, options=options).train()
        distiller(*batch).loss.backward()
        assert any(p.grad is not None for p in distiller.method.parameters())
    for method, options in (("fbt", {}), ("rsd", {"on": "logits"}), ("hcd", {})):
        with pytest.raises(cd.UserError, match=r"reads the teacher's logits.*\(auto, fitnet.*fbt with ofa=false\)"):
            cd.create_distiller(method, student=build("cnn"), teacher=headless, options=options)


def test_a_methods_options_are_not_the_distillers(batch):
    """HCD smooths the labels of its sub-logits; the task's smoothing is another number."""
    common = dict(student=build("plain_vit"), teacher=build("cnn"))
    plain = cd.create_distiller("hcd", **common, options={"label_smoothing": 0.3})
    assert (plain.method.options.label_smoothing, plain.task.label_smoothing) == (0.3, 0.0)
    smoothed = cd.create_distiller("hcd", **common, label_smoothing=0.3)
    assert (smoothed.method.options.label_smoothing, smoothed.task.label_smoothing) == (0.1, 0.3)
    assert cd.create_distiller("rsd", **common, options=RSDOptions(kappa=0.5)).method.options.kappa == 0.5
    with pytest.raises(TypeError, match="kappa"):
        cd.create_distiller("rsd", **common, kappa=0.5)


def test_stored_outputs_in_half_precision_are_cast(batch):
    images, targets = batch
    distiller = cd.create_distiller("fbt", student=build("plain_vit"), teacher=build("cnn")).eval()
    stored = distiller.teacher(images, stages=True).map(lambda tensor: tensor.half())
    single = stored.map(lambda tensor: tensor.float())
    torch.testing.assert_close(distiller(images, targets, stored).loss, distiller(images, targets, single).loss)


def test_own_method_by_its_path(batch):
    images, targets = batch
    distiller = cd.create_distiller(
        "tests.methods.own:Agreement", student=build("cnn"), teacher=build("mlp"), options={"weight": 2.0}
    )
    step = distiller(images, targets)
    assert set(step.terms) == {"task", "agreement"}
    torch.testing.assert_close(step.loss, step.terms["task"] + 2.0 * step.terms["agreement"])


def test_bf16_autocast_trains(batch):
    images, targets = batch
    distiller = cd.create_distiller("rsd", student=build("cnn"), teacher=build("plain_vit")).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = distiller(images, targets)
    assert step.terms["rsd"].dtype == torch.float32
    step.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in distiller.parameters() if p.grad is not None)


class Shallow(torch.nn.Module):
    """No four stages anywhere."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.conv(x).mean(dim=(2, 3)))


def test_a_method_that_needs_stages_says_so_at_once():
    shallow = cd.create_backbone("tests.test_distiller:Shallow", 5, 32)
    with pytest.raises(cd.UserError, match=r"stages of .*Shallow' cannot be read"):
        cd.create_distiller("hcd", student=shallow, teacher=build("cnn"))
    cd.create_distiller("hcd", student=build("cnn"), teacher=shallow)
    with pytest.raises(cd.UserError, match=r"stages of .*Shallow' cannot be read"):
        cd.create_distiller("rsd", student=build("cnn"), teacher=shallow, options={"spatial": 2})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("method", "options"), [*METHODS.values(), ("fbt", {"symmetric": True})])
def test_soft_labels_in_every_precision(method, options, dtype):
    images = torch.randn(8, 3, 32, 32)
    mixed = torch.rand(8, 5).softmax(dim=1)
    distiller = cd.create_distiller(method, student=build("cnn"), teacher=build("plain_vit"), options=options).train()
    if distiller.teacher is not None:
        with torch.no_grad():  # a confident teacher: logits that fp16 can just hold
            distiller.teacher.backbone.model.head.weight.mul_(3000)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        step = distiller(images, mixed, index=torch.arange(8))
    step.loss.backward()
    assert all(torch.isfinite(term) for term in step.terms.values())
    assert all(torch.isfinite(p.grad).all() for p in distiller.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", ["kd", "dkd", "dist", "ofa", "hcd", "fbt"])
def test_standardised_logits_forget_the_teachers_range(method, batch):
    images, targets = batch
    student, teacher = build("cnn"), build("plain_vit")
    options = {"standardise": True}
    if method == "hcd":
        options |= {"ce_weight": 0.0, "kl_weight": 0.0, "orthogonality_weight": 0.0}
    if method == "fbt":
        options |= {"fusion_weight": 0.0, "transfer_weight": 0.0, "info_nce": False}
    distiller = cd.create_distiller(method, student=student, teacher=teacher, options=options).double().eval()
    before = distiller(images.double(), targets).loss.item()
    plain = cd.create_distiller(method, student=student, teacher=teacher, options={**options, "standardise": False})
    plain.load_state_dict(distiller.state_dict(), strict=False)
    other = plain.double().eval()(images.double(), targets).loss.item()
    with torch.no_grad():
        teacher.model.head.weight.mul_(7)
        teacher.model.head.bias.mul_(7)
    assert distiller(images.double(), targets).loss.item() == pytest.approx(before, rel=1e-6)
    assert plain(images.double(), targets).loss.item() != pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("name", ["task", "loss"])
def test_a_term_cannot_have_the_name_of_another_value_of_the_log(name):
    class Own(cd.Method):
        def __init__(self, options, student, teacher):
            super().__init__(options, student, teacher)
            self.weights = {name: 1.0}

    student = build("cnn")
    with pytest.raises(cd.UserError, match=f"has a term '{name}', a name that the log uses"):
        cd.Distiller(student, Own(None, student, None))


def test_a_method_that_needs_labels_is_named_where_there_are_none():
    student, teacher = build("cnn"), build("plain_vit")
    choice = choose_method("kd+hcd")
    for method in ("kd+hcd", choice):
        with pytest.raises(cd.UserError, match=r"method 'kd\+hcd' learns from labels, but there are none"):
            cd.create_distiller(method, student=student, teacher=teacher, labelled=False)


def test_class_numbers_of_any_integer_type_are_labels():
    student, teacher = build("cnn"), build("plain_vit")
    distiller = cd.create_distiller("dkd", student=student, teacher=teacher).eval()
    images, targets = torch.randn(4, 3, 32, 32), torch.arange(4)
    expected = distiller(images, targets).loss
    for dtype in (torch.int32, torch.int16, torch.uint8):
        torch.testing.assert_close(distiller(images, targets.to(dtype)).loss, expected)


def test_a_balance_without_a_task_is_refused_with_the_cause():
    with pytest.raises(cd.UserError, match="without labels there is none"):
        cd.create_distiller("kd", student=build("cnn"), teacher=build("plain_vit"), labelled=False, balance=1.0)


def test_a_stored_output_sends_no_gradient_to_the_callers_teacher(batch):
    """It may have been made with gradients."""
    images, targets = batch
    student, teacher = build("cnn"), build("plain_vit")
    distiller = cd.create_distiller("rsd", student=student, teacher=teacher, balance=None).train()
    other = build("plain_vit")
    distiller(images, targets, other(images)).loss.backward()
    assert all(p.grad is None for p in other.parameters())


def test_dkd_needs_two_classes():
    with pytest.raises(cd.UserError, match="dkd compares the true class with the others, but there is one class"):
        cd.create_distiller("dkd", student=build("cnn", 1), teacher=build("plain_vit", 1))


def test_missing_targets_are_named():
    distiller = cd.create_distiller("rsd", student=build("cnn"), teacher=build("plain_vit"))
    with pytest.raises(ValueError, match="targets is None, but the task learns from labels"):
        distiller(torch.randn(4, 3, 32, 32), None)
