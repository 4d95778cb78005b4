import copy
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import crossdistill as cd
from crossdistill.balance import Balance
from tests.pairs import build
from tests.processes import in_two_processes


def make(method, target=0.5, student="cnn", **options):
    torch.manual_seed(0)
    teacher = build("plain_vit")
    return cd.create_distiller(method, student=build(student), teacher=teacher, options=options, balance=target)


def batch(size=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % 5


def sizes(value, output):
    """Norms of a scalar's gradient on embedding and logits, by plain autograd."""
    found = torch.autograd.grad(value, [output.embedding, output.logits], retain_graph=True, allow_unused=True)
    return [0.0 if gradient is None else float(gradient.norm()) for gradient in found]


@pytest.mark.parametrize("student", ["cnn", "plain_vit"])
def test_the_factor_gives_the_gradient_its_size(student):
    distiller = make("rsd", 0.5, student).double()
    images, targets = batch()
    images = images.double()
    distiller(images, targets).loss.backward()
    distiller.balance.update()
    output = distiller.student(images)
    task = sizes(distiller.task.loss(output, targets), output)[0]
    (own,) = distiller.method(output, distiller.teacher(images), targets).values()
    ratio = distiller.weights["rsd"] * sizes(own, output)[0] / task
    # The student's own statistics moved between the two passes, its outputs in training mode did not.
    assert float(distiller.balance.log_ratios.exp()) == pytest.approx(ratio, rel=1e-4)
    _, factors = distiller.balance.begin()
    assert float(factors[0]) * ratio == pytest.approx(0.5, rel=1e-4)


def test_methods_of_a_sum_are_measured_by_themselves():
    images, targets = batch()
    alone = {}
    for name in ("rsd", "kd"):
        distiller = make(name)
        distiller(images, targets).loss.backward()
        distiller.balance.update()
        alone[name] = distiller.balance.log_ratios
    both = make("rsd+kd")
    both(images, targets).loss.backward()
    both.balance.update()
    # The decoupler has other initial values in a sum of another order, so it comes first here.
    torch.testing.assert_close(both.balance.log_ratios, torch.cat([alone["rsd"], alone["kd"]]), rtol=1e-3, atol=1e-3)


def train(distiller, steps=3):
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01)
    images, targets = batch()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        step = distiller(images, targets)
        step.loss.backward()
        optimizer.step()
        losses.append(step.loss.item())
    return losses


def test_the_weight_does_not_matter_after_the_first_step():
    results = [train(make("kd", weight=weight))[1:] for weight in (0.1, 1.0, 100.0)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-2)


def test_the_values_of_the_terms_are_unchanged():
    images, targets = batch()
    with_balance = make("rsd+kd")
    without = make("rsd+kd", None)
    terms = with_balance(images, targets).terms
    for name, value in without(images, targets).terms.items():
        torch.testing.assert_close(terms[name], value)


def test_the_state_continues():
    distiller = make("rsd")
    train(distiller, 3)
    distiller.balance.update()
    again = make("rsd")
    again.load_state_dict(copy.deepcopy(distiller.state_dict()))
    assert train(distiller, 2) == train(again, 2)
    assert not any("balance" in name for name, _ in distiller.named_parameters())


def test_gradients_that_are_not_finite_are_left_out():
    balance = Balance([0.5])
    for gradient in (1.0, float("nan"), float("inf"), 0.0):
        probe, _ = balance.begin()
        probe.grad = torch.full_like(probe, gradient)
        balance.update()
        assert balance.log_ratios.isfinite().all()
    assert int(balance.steps) == 1


def half(rank):
    distiller = make("rsd+kd", student="plain_vit")
    images, targets = batch()
    own = slice(rank * 6, rank * 6 + 6)
    distiller(images[own], targets[own]).loss.backward()
    distiller.balance.update()
    return distiller.balance.log_ratios


def test_two_processes_measure_what_one_does():
    distiller = make("rsd+kd", student="plain_vit")
    distiller(*batch()).loss.backward()
    distiller.balance.update()
    for found in in_two_processes(half):
        torch.testing.assert_close(found, distiller.balance.log_ratios, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "kwargs", "message"),
    [
        ("fitnet", {}, "FitNet reads neither; leave balance out"),
        ("rsd+fitnet", {}, "fitnet reads neither"),
        ("kd", {"task_weight": 0.0}, "task_weight is 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(method, kwargs, message):
    with pytest.raises(cd.UserError, match=message):
        cd.create_distiller(method, student=build("cnn"), teacher=build("plain_vit"), balance=0.5, **kwargs)
    with pytest.raises(cd.UserError, match=r"balance is 0\.0; it must be greater than 0"):
        cd.create_distiller("kd", student=build("cnn"), teacher=build("plain_vit"), balance=0)


def test_a_classifier_that_starts_at_zero_is_waited_for():
    """Its gradient on the embedding is zero in the first step."""
    distiller = make("rsd", student="mlp")
    assert not distiller.student.model.head.weight.any()
    train(distiller, 1)
    distiller.balance.update()
    assert int(distiller.balance.steps) == 0
    train(distiller, 3)
    distiller.balance.update()
    assert int(distiller.balance.steps) == 3
    assert distiller.balance.log_ratios.isfinite().all()


def test_auto_uses_the_defaults_of_the_methods():
    kinds = {"kd": None, "fitnet": None, "rsd": [1.0], "rsd+kd": [1.0, 0.0], "rsd+fitnet": [1.0, 0.0]}
    for method, targets in kinds.items():
        balance = make(method, "auto").balance
        assert (None if balance is None else balance.targets.tolist()) == targets, method
    distiller = make("rsd+kd", "auto")
    train(distiller, 3)
    _, factors = distiller.balance.begin()
    assert factors[1] == 1
    assert 0 < factors[0] != 1


def test_a_weight_that_has_no_effect_is_known():
    assert make("rsd", "auto", weight=0.5).balanced_weights() == ["rsd"]
    assert make("rsd", "auto", kappa=0.5).balanced_weights() == []
    assert make("rsd", None, weight=0.5).balanced_weights() == []
    assert make("kd", "auto", weight=0.5).balanced_weights() == []
    assert make("rsd+kd", 1.0, rsd={"weight": 0.5}, kd={"weight": 2.0}).balanced_weights() == ["rsd", "kd"]
    assert make("auto", "auto").balanced_weights() == []


def test_a_method_that_is_never_measured_does_not_hold_back_the_others():
    """A method of weight 0 has no gradient."""
    distiller = make("rsd+kd", 1.0, kd={"weight": 0.0})
    alone = make("rsd", 1.0)
    for one in (distiller, alone):
        train(one, 3)
        one.balance.update()
    assert distiller.balance_factors()["rsd"] == pytest.approx(alone.balance_factors()["rsd"], rel=0.1)
    assert distiller.balance_factors()["kd"] == 1
    balance = Balance([1.0, 1.0])
    probe, _ = balance.begin()
    probe.grad = torch.ones_like(probe)
    probe.grad[3] = 0
    balance.update()
    assert balance.factors()[0] != 1e-3 == pytest.approx(float(balance.factors()[1]))


@pytest.mark.parametrize("method", ["kd", "rsd"])
def test_a_method_on_logits_alone_needs_no_classifier_of_the_embedding(method):
    """LeViT has two heads, so the task's gradient on the embedding is not known."""
    torch.manual_seed(0)
    student = cd.create_backbone("levit_128s", 5, 224)
    assert not student.classifies_embedding
    distiller = cd.create_distiller(
        method,
        student=student,
        teacher=build("plain_vit"),
        balance=1.0,
        options={"on": "logits"} if method == "rsd" else None,
    )
    images, targets = torch.randn(4, 3, 224, 224), torch.arange(4)
    step = distiller(images, targets)
    (name,) = distiller.weights
    ours, task = (torch.autograd.grad(step.terms[one], step.logits, retain_graph=True)[0] for one in (name, "task"))
    step.loss.backward()
    distiller.balance.update()
    expected = 1 / (distiller.weights[name] * float(ours.norm() / task.norm()))
    assert distiller.balance_factors()[method] == pytest.approx(expected, rel=1e-3)


class ByConvolution(torch.nn.Module):
    """The same function as a linear classifier of the mean."""

    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 5, 1)

    def forward(self, images):
        return self.head(self.body(images).relu()).mean((2, 3))


def test_a_convolutional_classifier_reads_no_embedding():
    student = cd.create_backbone("tests.test_balance:ByConvolution", 5, 32)
    assert not student.classifies_embedding
    teacher = build("plain_vit")
    assert cd.create_distiller("rsd", student=student, teacher=teacher, balance="auto").balance is None
    with pytest.raises(cd.UserError, match="are not computed from its embedding"):
        cd.create_distiller("rsd", student=student, teacher=teacher, balance=1.0)


def test_evaluation_has_the_loss_that_is_trained():
    distiller = make("rsd", 1.0)
    train(distiller, 2)
    distiller.balance.update()
    step = distiller.eval()(*batch())
    factor = distiller.balance_factors()["rsd"]
    expected = step.terms["task"] + factor * distiller.weights["rsd"] * step.terms["rsd"]
    torch.testing.assert_close(step.loss, expected)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rsd", {"weight": 0.0, "spatial": 2}),
        ("ofa", {"logit_weight": 0.0}),
        ("hcd", {"kl_weight": 0.0, "kd_weight": 0.0}),
        ("fbt", {"student_weight": 0.0, "transfer_weight": 0.0}),
    ],
)
def test_terms_that_no_gradient_can_be_measured_of_keep_their_weights(method, options):
    """They read stage maps alone, and would stay at the factor of the first step."""
    assert make(method, "auto", **options).balance is None
    with pytest.raises(cd.UserError, match=r"no term of .* that has a weight reaches them"):
        make(method, 1.0, **options)
    both = make(f"{method}+kd", None, **{method: options})
    (group, _) = both.method.groups()
    assert not any(both.weights[term] for term in group.measured)
    assert any(both.weights[term] for term in group.terms)


def test_a_state_holds_the_last_step():
    """A loop of one's own that is saved after a step, and goes on, has the numbers of one that was not."""
    images, targets = batch()
    whole = make("rsd", "auto")
    train(whole, 2)
    loaded = make("rsd", "auto")
    loaded.load_state_dict(whole.state_dict())
    assert int(loaded.balance.steps) == 2
    assert loaded.train()(images, targets).loss.item() == whole.train()(images, targets).loss.item()


def test_auto_is_the_default():
    pair = build("cnn"), build("plain_vit")
    for method, balanced in (("rsd", True), ("crd", True), ("rsd+kd", True), ("kd", False), ("fbt", False)):
        options = {"images": 8} if method == "crd" else None
        distiller = cd.create_distiller(method, student=pair[0], teacher=pair[1], options=options)
        assert (distiller.balance is not None) is balanced, method


def test_steps_that_are_not_measured_are_reported():
    distiller = make("rsd", 1.0)
    images, targets = batch()
    parameters = [value for value in distiller.parameters() if value.requires_grad]

    def unmeasured(steps):
        for number in range(steps):
            loss = distiller(images, targets).loss
            if number % 2:
                torch.autograd.grad(loss, parameters, allow_unused=True)
            else:
                loss.backward(inputs=parameters)

    with pytest.warns(UserWarning, match=r"stay at \[0\.001\].*loss\.backward\(\)") as warned:
        unmeasured(20)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Steps that measure, some that are looked at, losses that are added up, and evaluation.
        train(distiller, 3)
        for _ in range(5):
            distiller(images, targets)
        sum(distiller(images, targets).loss for _ in range(4)).backward()
        with torch.no_grad():
            for _ in range(20):
                distiller(images, targets)
        distiller.eval()
        for _ in range(20):
            distiller(images, targets)


def test_losses_that_are_added_up_and_steps_that_are_recomputed_are_measured():
    images, targets = batch()
    each, together, recomputed = (make("rsd", 1.0, "plain_vit") for _ in range(3))
    each(images, targets).loss.backward()
    (together(images, targets).loss + together(images.flip(3), targets).loss).backward()
    checkpoint(lambda *one: recomputed(*one).loss, images, targets, use_reentrant=False).backward()
    for one in (each, together, recomputed):
        one.balance.update()
    assert [int(one.balance.steps) for one in (each, together, recomputed)] == [1, 2, 1]
    torch.testing.assert_close(each.balance.log_ratios, recomputed.balance.log_ratios)
    # The next step of the recomputed one begins as usual.
    train(recomputed, 2)
    recomputed.balance.update()
    assert int(recomputed.balance.steps) == 3


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_steps_that_are_added_up_are_those_of_the_forward_pass(reentrant):
    images, targets = batch()
    images.requires_grad_()
    found = []
    for recomputes in (False, True):
        distiller = make("rsd", 1.0, "plain_vit")

        def loss(images, targets, distiller=distiller):
            return distiller(images, targets).loss

        train(distiller, 2)
        losses = [
            checkpoint(loss, one, targets, use_reentrant=reentrant) if recomputes else loss(one, targets)
            for one in (images, images.flip(3))
        ]
        distiller.zero_grad()
        sum(losses).backward()
        gradient = torch.cat([p.grad.flatten() for p in distiller.parameters() if p.grad is not None])
        distiller.balance.update()
        found.append((gradient, distiller.balance.log_ratios, int(distiller.balance.steps)))
    assert [steps for *_, steps in found] == [4, 4]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_mean(dtype):
    distiller = make("rsd", 1.0, "plain_vit").to(dtype)
    images, targets = batch()
    for _ in range(3):
        distiller(images.to(dtype), targets).loss.backward()
    distiller.balance.update()
    assert int(distiller.balance.steps) == 3
    assert distiller.balance.log_ratios.dtype == torch.float32
    whole = make("rsd", 1.0, "plain_vit")
    whole(images, targets).loss.backward()
    whole.balance.update()
    torch.testing.assert_close(distiller.balance.log_ratios, whole.balance.log_ratios, rtol=0, atol=0.1)
    torch.testing.assert_close(Balance([0.7]).to(dtype).targets, torch.tensor([0.7]), rtol=0, atol=0)


def test_a_loaded_state_begins_anew():
    distiller = make("rsd", 1.0)
    state = copy.deepcopy(distiller.state_dict())
    distiller(*batch()).loss.backward()
    distiller.load_state_dict(state)
    distiller.balance.update()
    assert int(distiller.balance.steps) == 0


def test_copies_that_are_thrown_away_are_refused():
    balance = Balance([1.0])._replicate_for_data_parallel()
    with pytest.raises(cd.UserError, match="DistributedDataParallel"):
        balance.begin()


def test_a_whole_object_is_saved_with_its_last_step(tmp_path):
    distiller = make("rsd", 1.0)
    train(distiller, 3)
    copied = copy.deepcopy(distiller)
    torch.save(distiller, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    expected = distiller.state_dict()
    for one in (copied, again):
        torch.testing.assert_close(one.state_dict(), expected, rtol=0, atol=0)
        assert int(one.balance.steps) == 3
