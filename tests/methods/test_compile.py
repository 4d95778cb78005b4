"""A training step is one graph: no graph breaks, no recompilation, the same numbers."""

import copy

import pytest
import torch

import crossdistill as cd
from tests.pairs import METHODS, build

PAIRS = [("cnn", "plain_vit"), ("plain_vit", "cnn"), ("mlp", "hierarchical_vit"), ("hybrid", "mlp")]
ALL = [(*pair, list(METHODS.values())) for pair in PAIRS]
DENSE = ("cnn", "plain_vit", [("rsd", {"spatial": 4, "spatial_samples": 3}), ("fbt", {})])


@pytest.mark.slow
@pytest.mark.parametrize(("student", "teacher", "methods"), [DENSE, *ALL])
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_step_is_one_graph_with_the_same_numbers(student, teacher, methods):
    pair = build(student), build(teacher)
    targets, index = torch.arange(8) % 5, 2 * torch.arange(8)
    for method, options in methods:
        torch._dynamo.reset()
        plain = cd.create_distiller(method, student=copy.deepcopy(pair[0]), teacher=pair[1], options=options).train()
        twin = copy.deepcopy(plain)
        compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
        for step in range(2):
            images = torch.randn(8, 3, 32, 32)
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                results = plain(images, targets, index=index), compiled(images, targets, index=index)
            for name, value in results[0].terms.items():
                torch.testing.assert_close(results[1].terms[name], value, rtol=1e-4, atol=1e-5)
            for distiller, result in zip((plain, twin), results, strict=True):
                distiller.zero_grad()
                result.loss.backward()
            with torch.no_grad():
                for ours, theirs in zip(plain.parameters(), twin.parameters(), strict=True):
                    assert (ours.grad is None) == (theirs.grad is None)
                    if ours.grad is not None:
                        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-4)
                        ours -= 1e-3 * ours.grad
                        theirs.copy_(ours)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("method", ["rsd", pytest.param("fbt", marks=pytest.mark.slow)])
def test_a_cached_step_is_one_graph_as_well(method):
    torch._dynamo.reset()
    plain = cd.create_distiller(method, student=build("cnn"), teacher=build("plain_vit"), balance=None).train()
    images, targets = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    stored = plain.teacher(images)
    plain.release_teacher()
    twin = copy.deepcopy(plain)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    results = plain(images, targets, stored), compiled(images, targets, stored)
    torch.testing.assert_close(results[1].loss, results[0].loss, rtol=1e-4, atol=1e-5)


def test_a_step_looks_at_no_value():
    """On the meta device there are none: whatever waits for one, on a GPU, fails here."""
    for families in (("cnn", "plain_vit"), ("plain_vit", "cnn")):
        pair = tuple(build(family) for family in families)
        for method, options in METHODS.values():
            distiller = cd.create_distiller(
                method, student=copy.deepcopy(pair[0]), teacher=copy.deepcopy(pair[1]), options=options
            )
            distiller.to("meta").train()
            index = torch.zeros(8, dtype=torch.long, device="meta")
            step = distiller(torch.randn(8, 3, 32, 32, device="meta"), index, index=index)
            step.loss.backward()
