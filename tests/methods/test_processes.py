"""Two processes with half the batch each give the loss and the gradients of one with the whole."""

import pytest
import torch
import torch.distributed as dist

import crossdistill as cd
from tests.processes import in_two_processes

CASES = [
    ("kd", {}),
    ("dkd", {}),
    ("dist", {}),
    ("rsd", {}),
    ("rsd", {"on": "stages"}),
    ("rsd", {"spatial": 2}),
    ("rsd", {"spatial": 4, "spatial_stages": [1, 4], "spatial_samples": 3}),
    ("fitnet", {}),
    ("cc", {}),
    ("rkd", {}),
    ("crd", {"images": 12}),
    ("ofa", {}),
    ("hcd", {}),
    ("fbt", {"symmetric": True}),
    ("rsd+kd", {}),
]


def make(method, options):
    torch.manual_seed(0)
    # Norms over one image each: the student's own batch statistics are not the method's matter.
    student = cd.create_backbone("test_vit", 5, 32, patch_size=8)
    teacher = cd.create_backbone("test_convnext", 5, 32)
    return cd.create_distiller(method, student=student, teacher=teacher, options=options).double().train()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64), torch.arange(8) % 5


def gradients(distiller, loss):
    loss.backward()
    return {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}


def half(rank, method, options):
    distiller = make(method, options)
    images, targets = batch()
    own = slice(rank * 4, rank * 4 + 4)
    step = distiller(images[own], targets[own], index=torch.arange(8)[own])
    found = gradients(distiller, step.loss)
    for grad in found.values():
        dist.all_reduce(grad)
        grad /= 2
    mean = step.loss.detach().clone()
    dist.all_reduce(mean)
    return mean / 2, found


@pytest.mark.parametrize(("method", "options"), CASES)
def test_two_processes_equal_one(method, options):
    distiller = make(method, options)
    step = distiller(*batch(), index=torch.arange(8))
    expected = gradients(distiller, step.loss)
    for loss, found in in_two_processes(half, method, options):
        assert float(loss) == pytest.approx(step.loss.item(), rel=1e-6)
        assert found.keys() == expected.keys()
        for name, grad in found.items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-6, msg=name)
