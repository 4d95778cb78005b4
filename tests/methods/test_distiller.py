import copy

import pytest
import torch
import torch.nn.functional as F

import crossdistill as cd
from crossdistill.teacher import renormalisation

# One tiny model of each family.
FAMILIES = {
    "cnn": ("test_resnet", {}),
    "hierarchical_vit": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 2, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4},
    ),
    "plain_vit": ("test_vit", {"patch_size": 8}),
    "mlp": ("timm.models.mlp_mixer:MlpMixer", {"patch_size": 8, "embed_dim": 24, "num_blocks": 4}),
    "hybrid": ("mobilevitv2_050", {}),
}


def build(family, classes=5, **kwargs):
    name, args = FAMILIES[family]
    return cd.create_backbone(name, classes, 32, **args, **kwargs)


@pytest.fixture
def batch():
    return torch.randn(8, 3, 32, 32), torch.arange(8) % 5


METHODS = [("none", {}), ("kd", {"temperature": 4.0}), ("rsd", {}), ("rsd", {"on": "logits"}), ("rsd", {"kappa": 0.0})]
METHODS += [("rsd", {"decoupler": "linear"}), ("rsd", {"on": "logits", "decoupler": "none"})]
METHODS += [("rsd", {"on": "stages"}), ("rsd", {"spatial": 2, "reference_width": 512})]
METHODS += [("ofa", {"eps": 1.2}), ("hcd", {}), ("hcd", {"stages": [3, 4], "parts": 2})]
METHODS += [("dkd", {"temperature": 4.0}), ("dist", {"standardise": True}), ("fbt", {})]


@pytest.mark.parametrize("teacher", FAMILIES)
@pytest.mark.parametrize("student", FAMILIES)
def test_every_pair_of_families_learns(student, teacher, batch):
    images, targets = batch
    pair = build(student), build(teacher)
    frozen = {name: value.clone() for name, value in pair[1].state_dict().items()}
    for method, options in METHODS:
        distiller = cd.create_distiller(method, student=copy.deepcopy(pair[0]), teacher=pair[1], **options).train()
        optimizer = torch.optim.Adam(distiller.parameters(), 1e-3)
        losses = []
        for _ in range(4):
            step = distiller(images, targets)
            assert set(step.terms) == {"task", *distiller.method.weights}
            assert all(term.ndim == 0 and torch.isfinite(term) for term in step.terms.values())
            optimizer.zero_grad()
            step.loss.backward()
            assert all(p.grad is not None for p in distiller.method.parameters())
            optimizer.step()
            losses.append(step.loss.item())
        assert losses[-1] < losses[0], (method, options, losses)
    assert all(torch.equal(frozen[name], value) for name, value in pair[1].state_dict().items())
    assert all(p.grad is None for p in pair[1].parameters())


def test_the_teacher_is_a_guest(batch):
    distiller = cd.create_distiller("rsd", student=build("cnn"), teacher=build("plain_vit"))
    distiller.train()
    assert distiller.student.training
    assert not distiller.teacher.training
    assert not distiller.teacher.backbone.model.training
    assert not any(p.requires_grad for p in distiller.teacher.parameters())
    kept = [*distiller.state_dict(), *(name for name, _ in distiller.named_parameters())]
    assert kept
    assert all(name.startswith(("student.", "method.")) for name in kept)
    distiller.to(torch.float64)
    assert next(distiller.teacher.parameters()).dtype == torch.float64


def test_weights_are_applied_once_and_only_to_the_loss(batch):
    distiller = cd.create_distiller(
        "rsd", student=build("cnn"), teacher=build("plain_vit"), weight=0.3, task_weight=2.0, label_smoothing=0.1
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
        ("rsd", {"on": "stage"}, "did you mean 'stages'"),
        ("hcd", {"stages": [2, 1]}, "rising numbers from 1 to 4"),
        ("hcd", {"parts": 2.5}, "must be of type"),
        ("ofa", {"eps": 0.5}, "eps is 0.5"),
        ("rsd", {"decoupler": "none"}, "student's embedding has 96 and the teacher's 64"),
        ("kd", {"temperature": 0.0}, "must be positive"),
        ("dkd", {"temperature": -1.0}, "temperature is -1.0; it must be positive"),
        ("dkd", {"beta": -1.0}, "beta is -1.0; it must not be negative"),
        ("dist", {"gamma": -0.5}, "gamma is -0.5; it must not be negative"),
        ("tests.nowhere:Method", {}, "cannot be imported"),
    ],
)
def test_wrong_methods_and_options_are_answered(method, options, message):
    with pytest.raises(cd.UserError, match=message):
        cd.create_distiller(method, student=build("cnn"), teacher=build("plain_vit"), **options)


def test_pairs_that_cannot_work_are_refused():
    student = build("cnn")
    with pytest.raises(cd.UserError, match="teacher gives 7 classes, the student 5"):
        cd.create_distiller("kd", student=student, teacher=build("mlp", classes=7))
    with pytest.raises(cd.UserError, match="3 input channels, the student 1"):
        cd.create_distiller("kd", student=build("cnn", in_chans=1), teacher=build("mlp"))
    with pytest.raises(cd.UserError, match="same object"):
        cd.create_distiller("kd", student=student, teacher=student)
    with pytest.raises(cd.UserError, match="needs a teacher"):
        cd.create_distiller("kd", student=student)


def test_own_method_by_its_path(batch):
    images, targets = batch
    distiller = cd.create_distiller(
        "tests.methods.own:Agreement", student=build("cnn"), teacher=build("mlp"), weight=2.0
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
    shallow = cd.create_backbone("tests.methods.test_distiller:Shallow", 5, 32)
    with pytest.raises(cd.UserError, match=r"stages of .*Shallow' cannot be read"):
        cd.create_distiller("hcd", student=shallow, teacher=build("cnn"))
    cd.create_distiller("hcd", student=build("cnn"), teacher=shallow)
    with pytest.raises(cd.UserError, match=r"stages of .*Shallow' cannot be read"):
        cd.create_distiller("rsd", student=build("cnn"), teacher=shallow, spatial=2)


def test_one_reference_width_makes_the_term_independent_of_the_teachers_width():
    from crossdistill.losses import rsd_loss

    torch.manual_seed(0)
    losses = {}
    for width in (64, 256):
        student, teacher = torch.randn(2, 512, width)
        losses[width] = [rsd_loss(student, teacher, kappa=0.5, width=w).item() for w in (None, 100)]
    assert losses[256][0] > 3.5 * losses[64][0]
    assert losses[256][1] == pytest.approx(losses[64][1], rel=0.05)
    student, teacher = torch.randn(2, 32, 100)
    assert rsd_loss(student, teacher, width=100).item() == pytest.approx(rsd_loss(student, teacher).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("method", "options"), [*METHODS, ("hcd", {"detach": True}), ("fbt", {"symmetric": True})])
def test_soft_labels_in_every_precision(method, options, dtype):
    images = torch.randn(8, 3, 32, 32)
    mixed = torch.rand(8, 5).softmax(dim=1)
    distiller = cd.create_distiller(method, student=build("cnn"), teacher=build("plain_vit"), **options).train()
    if distiller.teacher is not None:
        with torch.no_grad():  # a confident teacher: logits that fp16 can just hold
            distiller.teacher.backbone.model.head.weight.mul_(3000)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        step = distiller(images, mixed)
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
    distiller = cd.create_distiller(method, student=student, teacher=teacher, **options).double().eval()
    before = distiller(images.double(), targets).loss.item()
    plain = cd.create_distiller(method, student=student, teacher=teacher, **{**options, "standardise": False})
    plain.load_state_dict(distiller.state_dict(), strict=False)
    other = plain.double().eval()(images.double(), targets).loss.item()
    with torch.no_grad():
        teacher.model.head.weight.mul_(7)
        teacher.model.head.bias.mul_(7)
    assert distiller(images.double(), targets).loss.item() == pytest.approx(before, rel=1e-6)
    assert plain(images.double(), targets).loss.item() != pytest.approx(other, rel=1e-3)
