import math

import pytest
import torch
import torch.nn.functional as F

import crossdistill as cd
from crossdistill.losses import orthogonality_loss, sublogit_cross_entropy, sublogit_divergence
from tests.losses.inputs import labels, sublogits


def slow_orthogonality(sublogits, target, threshold):
    total = 0.0
    for rows, label in zip(sublogits.tolist(), target.tolist(), strict=True):
        unit = []
        for row in rows:
            others = [0.0 if c == label else v for c, v in enumerate(row)]
            norm = math.sqrt(sum(v * v for v in others))
            unit.append([v / norm for v in others])
        pairs = [(i, j) for i in range(len(unit)) for j in range(len(unit)) if i != j]
        for i, j in pairs:
            cosine = sum(a * b for a, b in zip(unit[i], unit[j], strict=True))
            total += max(cosine - threshold, 0.0) ** 2 / len(pairs)
    return total / len(sublogits)


def log_softmax(row):
    top = max(row)
    norm = top + math.log(sum(math.exp(v - top) for v in row))
    return [v - norm for v in row]


@pytest.mark.parametrize("threshold", [0.25, 0.5])
def test_golden_values_and_gradients(golden, threshold):
    for case in golden:
        parts = sublogits(case).requires_grad_()
        loss = orthogonality_loss(parts, labels(case), threshold=threshold)
        loss.backward()
        expected = case["expected"][f"hcd_orthogonality_th{threshold:g}"]
        assert loss.item() == pytest.approx(expected["value"], rel=1e-9)
        assert parts.grad.norm().item() == pytest.approx(expected["grad_l2"], rel=1e-9)
        assert parts.grad.abs().sum().item() == pytest.approx(expected["grad_sum_abs"], rel=1e-9)


def test_loops_agree():
    parts, target = torch.randn(6, 3, 5, dtype=torch.float64), torch.arange(6) % 5
    for threshold in (-0.5, 0.0, 0.5):
        assert orthogonality_loss(parts, target, threshold=threshold).item() == pytest.approx(
            slow_orthogonality(parts, target, threshold), rel=1e-9
        )


def test_gradcheck():
    parts, target = torch.randn(3, 3, 4, dtype=torch.float64, requires_grad=True), torch.arange(3)
    assert torch.autograd.gradcheck(lambda p: orthogonality_loss(p, target, threshold=0.1), parts)
    student = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: sublogit_cross_entropy(p, target), parts)
    assert torch.autograd.gradcheck(lambda p, s: sublogit_divergence(p, s, temperature=2.0), (parts, student))


def test_equal_parts_are_worst_and_orthogonal_ones_cost_nothing():
    target = torch.tensor([3])
    equal = torch.ones(1, 4, 4, dtype=torch.float64)
    assert orthogonality_loss(equal, target, threshold=0.5).item() == pytest.approx(0.25)
    apart = torch.eye(4, dtype=torch.float64)[None, :3]
    assert orthogonality_loss(apart, target, threshold=0.0).item() == 0
    with pytest.raises(ValueError, match="at least 2"):
        orthogonality_loss(equal[:, :1], target)


def test_scale_and_order_of_parts_do_not_matter():
    parts, target = torch.randn(4, 3, 5, dtype=torch.float64), torch.arange(4)
    expected = orthogonality_loss(parts, target, threshold=0.1).item()
    assert orthogonality_loss(7 * parts[:, [2, 0, 1]], target, threshold=0.1).item() == pytest.approx(expected)


def test_half_precision_and_empty_parts_stay_finite():
    parts = torch.zeros(2, 3, 4, dtype=torch.float16)
    parts[0, 0] = 60000
    parts.requires_grad_()
    loss = orthogonality_loss(parts, torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(parts.grad).all()


def slow_mapper(mappers, place, rows):
    """One stage's two linear layers."""
    biases = (mappers.mix_bias, mappers.classify_bias)
    mix, classify = (bias.view(mappers.stages, -1)[place] for bias in biases)
    mixed = (rows @ mappers.mix[place] + mix).relu()
    return (mixed @ mappers.classify[place] + classify).view(len(rows), mappers.parts, -1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_gradient": "published"},
        {"orthogonality_on": "sublogits", "threshold": 0.0, "student_fusion": 0.5},
        {"reduction": "mean", "stages": [2, 4]},
        {"parts": 1},
    ],
)
def test_the_whole_of_hcd_against_loops(options):
    torch.manual_seed(0)
    student = cd.create_backbone("test_resnet", 5, 32)
    teacher = cd.create_backbone("test_vit", 5, 32)
    distiller = (
        cd.create_distiller("hcd", student=student, teacher=teacher, options={"temperature": 2.0, **options})
        .double()
        .eval()
    )
    images, targets = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 3, 1, 4])
    with torch.no_grad():
        ours, theirs = student(images, stages=True), distiller.teacher(images)
    method, stages = distiller.method, options.get("stages", [1, 2, 3, 4])
    with torch.no_grad():  # at their initial values the sub-logits are near zero
        method.mappers.mix.mul_(20)
        method.mappers.classify.mul_(20)
    step = distiller(images, targets)
    expected = {"kd": 0.0, "hcd_ce": 0.0, "hcd_kl": 0.0, "hcd_orthogonality": 0.0}
    parts = options.get("parts", 4)
    for b in range(4):
        p_s, p_t = (log_softmax([v / 2.0 for v in o.logits[b].tolist()]) for o in (ours, theirs))
        expected["kd"] += 4.0 * sum(math.exp(t) * (t - s) for t, s in zip(p_t, p_s, strict=True)) / 4
        for place, stage in enumerate(stages):
            with torch.no_grad():
                vector = method.projectors[place](ours.stages[stage - 1])
                shared = slow_mapper(method.mappers, place, torch.cat([vector, theirs.embedding], dim=1))[b]
            fused = (options.get("student_fusion", 1) * shared.float() + theirs.logits[b].float()).double()
            share = 1 / len(stages) if options.get("reduction") == "mean" else 1
            for row in fused.tolist():
                plain, soft = log_softmax(row), log_softmax([v / 2.0 for v in row])
                smooth = [0.1 / 5 + (0.9 if c == targets[b] else 0) for c in range(5)]
                expected["hcd_ce"] += share * -sum(w * v for w, v in zip(smooth, plain, strict=True)) / (4 * parts)
                divergence = sum(math.exp(f) * (f - s) for f, s in zip(soft, p_s, strict=True))
                expected["hcd_kl"] += share * 4.0 * divergence / (4 * parts)
            if parts > 1:
                apart = shared if options.get("orthogonality_on") == "sublogits" else fused
                one = slow_orthogonality(apart[None], targets[b : b + 1], options.get("threshold", 0.5))
                expected["hcd_orthogonality"] += share * one / 4
    for name, value in step.terms.items():
        if name != "task":
            assert value.item() == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name


def divergence_reaches_the_mapper(**options):
    student, teacher = cd.create_backbone("test_resnet", 5, 32), cd.create_backbone("test_vit", 5, 32)
    distiller = cd.create_distiller("hcd", student=student, teacher=teacher, options=options)
    distiller(torch.randn(4, 3, 32, 32), torch.arange(4)).terms["hcd_kl"].backward()
    return any(p.grad is not None and bool(p.grad.any()) for p in distiller.method.mappers.parameters())


def test_only_the_published_gradient_moves_the_target():
    assert divergence_reaches_the_mapper(target_gradient="published")
    assert not divergence_reaches_the_mapper(target_gradient="detached")
    assert not divergence_reaches_the_mapper()


def test_soft_targets_are_taken_as_meant():
    parts = torch.randn(4, 3, 5, dtype=torch.float64)
    soft = torch.rand(4, 5, dtype=torch.float64).softmax(1)
    cross_entropy = sublogit_cross_entropy(parts, soft)
    expected = torch.stack([F.cross_entropy(parts[:, q], soft) for q in range(3)]).mean()
    assert cross_entropy.item() == pytest.approx(expected.item())
