import pytest
import torch

import crossdistill as cd
from crossdistill.losses import info_nce_loss, ofa_loss
from tests.pairs import build


def make(student, teacher, **options):
    return cd.create_distiller("fbt", student=build(student), teacher=build(teacher), options=options)


@pytest.fixture
def batch():
    return torch.randn(6, 3, 32, 32), torch.arange(6) % 5


@pytest.mark.parametrize(
    ("student", "teacher", "front"),
    [
        ("cnn", "plain_vit", "student"),
        ("cnn", "mlp", "student"),
        ("plain_vit", "cnn", "teacher"),
        ("mlp", "cnn", "teacher"),
        ("hybrid", "cnn", "teacher"),
        ("cnn", "cnn", "student"),
        ("plain_vit", "hierarchical_vit", "student"),
    ],
)
def test_the_front_follows_from_the_families(student, teacher, front):
    assert make(student, teacher).method.front_is_teacher is (front == "teacher")


def test_the_front_can_be_forced(batch):
    distiller = make("cnn", "plain_vit", front="teacher").train()
    assert distiller.method.front_is_teacher
    distiller(*batch).loss.backward()


def test_the_front_runs_once_and_the_back_once_more(batch):
    distiller = make("cnn", "plain_vit").train()
    ran = []
    for name, module in distiller.student.model.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: ran.append(name))
    distiller(*batch)
    assert ran.count("layer1.0.conv1") == ran.count("layer3.0.conv1") == ran.count("layer4.0.conv1") == 1
    # The teacher's last blocks: once in its own forward, once in the fused network; its first ones once.
    distiller = make("cnn", "plain_vit").train()
    blocks = []
    for place, block in enumerate(distiller.teacher.backbone.model.blocks):
        block.register_forward_hook(lambda m, i, o, place=place: blocks.append(place))
    for module in distiller.method.tail.network.model.blocks:
        module.register_forward_hook(lambda m, i, o: blocks.append(type(m).__name__))
    distiller(*batch)
    assert blocks.count("Block") == len(distiller.teacher.backbone.model.blocks) - 5 == 1
    assert all(blocks.count(place) == 1 for place in range(6))


def test_frozen_blocks_pass_gradients_and_stay_as_they_are(batch):
    # A CNN teaches a CNN: the back has batch norms.
    distiller = make("cnn", "cnn").train()
    before = {name: value.clone() for name, value in distiller.teacher.backbone.state_dict().items()}
    step = distiller(*batch)
    step.terms["fbt_fusion_ofa"].backward()
    assert distiller.student.model.conv1[0].weight.grad.abs().sum() > 0
    assert distiller.student.model.layer4[0].conv1.weight.grad is None
    assert all(torch.equal(before[name], value) for name, value in distiller.teacher.backbone.state_dict().items())
    assert all(p.grad is None for p in distiller.teacher.parameters())


def test_a_shared_back_of_the_student_keeps_its_statistics(batch):
    distiller = make("hybrid", "cnn").train()
    counted = [m for m in distiller.student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    alone = build("hybrid").train()
    alone.load_state_dict(distiller.student.state_dict())
    distiller(*batch)
    alone(batch[0])
    twins = [m for m in alone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for ours, theirs in zip(counted, twins, strict=True):
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_terms_are_what_they_say(batch):
    distiller = make("cnn", "plain_vit", eps=1.3).eval()
    images, targets = batch
    step = distiller(images, targets)
    method = distiller.method
    student, teacher = distiller.student(images, stages=True), distiller.teacher(images)
    fused = method.fused(student, teacher)
    torch.testing.assert_close(step.terms["fbt_fusion_ofa"], ofa_loss(fused.logits, teacher.logits, targets, eps=1.3))
    expected = info_nce_loss(
        method.project["student"](student.embedding), method.project["fused"](fused.embedding), temperature=0.07
    )
    torch.testing.assert_close(step.terms["fbt_transfer_nce"], expected)
    assert set(step.terms) == {"task", *method.weights}
    assert set(method.weights) == {f"fbt_{a}_{b}" for a in ("student", "fusion", "transfer") for b in ("nce", "ofa")}


def test_parts_can_be_switched_off(batch):
    distiller = make("cnn", "plain_vit", info_nce=False, swin_block=False, fusion_weight=0.0)
    step = distiller(*batch)
    assert set(step.terms) == {"task", "fbt_student_ofa", "fbt_fusion_ofa", "fbt_transfer_ofa"}
    expected = step.terms["task"] + step.terms["fbt_student_ofa"] + step.terms["fbt_transfer_ofa"]
    torch.testing.assert_close(step.loss, expected)
    with pytest.raises(cd.UserError, match="nothing is transferred"):
        make("cnn", "plain_vit", info_nce=False, ofa=False)


def test_without_its_weights_there_is_no_fused_network(batch):
    off = {"fusion_weight": 0.0, "transfer_weight": 0.0}
    distiller = make("cnn", "plain_vit", **off).train()
    step = distiller(*batch)
    assert set(step.terms) == {"task", "fbt_student_nce", "fbt_student_ofa"}
    assert not distiller.needs.student.stages + distiller.needs.teacher.stages
    assert not distiller.borrowed
    assert sorted(distiller.method.project) == ["student", "teacher"]
    step.loss.backward()
    assert all(p.grad is not None for p in distiller.parameters())
    assert make("cnn", "plain_vit", **off, fused_task_weight=1.0).method.options.fuses
    with pytest.raises(cd.UserError, match="with all weights 0"):
        make("cnn", "plain_vit", **off, student_weight=0.0)


def test_the_temperature_learns_within_bounds(batch):
    distiller = make("cnn", "plain_vit").train()
    distiller(*batch).loss.backward()
    assert distiller.method.log_temperature.grad.abs() > 0
    with torch.no_grad():
        for value, bound in ((-20.0, 0.01), (20.0, 1.0)):
            distiller.method.log_temperature.fill_(value)
            assert distiller.method.temperature.item() == pytest.approx(bound)


def test_the_fused_network_teaches_and_is_not_changed_by_it(batch):
    for detach in (True, False):
        distiller = make("cnn", "plain_vit", detach=detach).train()
        distiller(*batch).terms["fbt_transfer_ofa"].backward()
        touched = any(p.grad is not None and p.grad.any() for p in distiller.method.l2g.parameters())
        assert touched is not detach


def test_nothing_shared_is_registered_twice():
    distiller = make("plain_vit", "cnn")
    names = [name for name, _ in distiller.named_parameters()]
    assert len(names) == len(set(names))
    parts = {name.split(".")[1] for name in names if name.startswith("method.")}
    assert parts <= {"l2g", "project", "log_temperature", "prefix"}
    distiller.to(torch.float64)
    images, targets = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1])
    assert distiller(images, targets).loss.dtype == torch.float64


@pytest.mark.parametrize(
    ("front", "back"),
    [((2, 2), (8, 8)), ((8, 8), (2, 2)), ((7, 7), (4, 4)), ((4, 4), (4, 4)), ((8, 4), (4, 2)), ((6, 3), (2, 3))],
)
def test_the_projector_may_embed_before_it_resizes(front, back):
    """Where it does, the numbers are those of resizing first."""
    from crossdistill.methods.fbt import LocalToGlobal

    l2g = LocalToGlobal(6, front, 32, back, swin_block=True).double().eval()
    features = torch.randn(2, 6, *front, dtype=torch.float64)
    first = features
    if front[0] % back[0] or front[0] * back[1] != front[1] * back[0]:
        first = torch.nn.functional.interpolate(features, back, mode="bilinear", align_corners=False)
    expected = l2g.mix(l2g.norm(l2g.embed(first).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    assert expected.shape == (2, 32, *back)
    torch.testing.assert_close(l2g(features), expected, rtol=1e-10, atol=1e-10)


def test_the_window_fits_the_grid():
    from crossdistill.methods.fbt import _window

    chosen = {side: _window(side) for side in (1, 2, 4, 7, 8, 9, 12, 13, 14, 16, 28)}
    assert chosen == {1: 1, 2: 2, 4: 4, 7: 7, 8: 8, 9: 5, 12: 6, 13: 7, 14: 7, 16: 8, 28: 7}


def test_a_ramp_lets_the_fused_network_learn_first(batch):
    made = []
    for ramp in (0, 2):
        torch.manual_seed(0)
        made.append(make("cnn", "plain_vit", ramp=ramp))
    plain, ramped = made
    for scale in (0.0, 0.5, 1.0, 1.0):
        terms, slow = plain(*batch).terms, ramped(*batch).terms
        for name, term in terms.items():
            torch.testing.assert_close(slow[name], term * (scale if "transfer" in name else 1.0), msg=name)
    assert int(ramped.state_dict()["method.steps"]) == 4
    ramped.eval()(*batch)
    assert int(ramped.method.steps) == 4


def test_the_fused_network_may_learn_from_the_labels(batch):
    distiller = make("cnn", "plain_vit", fused_task_weight=0.5)
    step = distiller(*batch)
    assert distiller.weights["fbt_fused_task"] == 0.5
    step.terms["fbt_fused_task"].backward()
    assert distiller.method.l2g.embed.weight.grad.any()
    soft = torch.full((6, 5), 0.2)
    assert distiller(batch[0], soft).terms["fbt_fused_task"].isfinite()


def test_labels_of_the_student_are_not_taken_for_classes_of_the_teacher():
    """The fused network ends in the teacher's head, which has other classes or none."""
    for teacher in (cd.create_backbone("test_vit", 20, 32), cd.create_backbone("test_vit", 0, 32)):
        with pytest.raises(cd.UserError, match=r"classes|no classifier"):
            cd.create_distiller(
                "fbt",
                student=build("cnn"),
                teacher=teacher,
                options={"ofa": False, "fused_task_weight": 1.0},
            )


@pytest.mark.parametrize(("beyond", "bound", "inward"), [(-9.0, 0.01, -1), (1.0, 1.0, 1)])
def test_the_temperature_comes_back_from_its_bounds(beyond, bound, inward):
    """A gradient that leads further out is dropped, one that leads back is kept."""
    method = make("cnn", "plain_vit", temperature=0.01).train().method
    with torch.no_grad():
        method.log_temperature.fill_(beyond)
    assert method.temperature.item() == pytest.approx(bound)
    (inward * method.temperature).backward()
    assert method.log_temperature.grad.item() == pytest.approx(inward * bound)
    method.log_temperature.grad = None
    (-inward * method.temperature).backward()
    assert method.log_temperature.grad.item() == 0


def test_the_cross_entropy_of_the_fused_network_needs_the_classifier_of_its_back():
    """The front may have none: here a headless CNN teaches a ViT."""
    options = {"ofa": False, "fused_task_weight": 1.0}
    headless = cd.create_backbone("test_resnet", 0, 32)
    distiller = cd.create_distiller("fbt", student=build("plain_vit"), teacher=headless, options=options).train()
    step = distiller(torch.randn(6, 3, 32, 32), torch.arange(6) % 5)
    assert step.terms["fbt_fused_task"].isfinite()
    with pytest.raises(cd.UserError, match="reads the teacher's logits"):
        cd.create_distiller("fbt", student=build("cnn"), teacher=cd.create_backbone("test_vit", 0, 32), options=options)
