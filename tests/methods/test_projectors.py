import math

import pytest
import torch
from torch import nn

import crossdistill as cd
from tests.pairs import build


def trained_only(method, **options):
    """The training-only parts of a method, at their initial values."""
    torch.manual_seed(0)
    return cd.create_distiller(method, student=build("cnn"), teacher=build("plain_vit"), options=options).method


def check_linear(weight):
    assert weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert weight.abs().max() < 0.12  # torch's own initial values reach 1 / sqrt(fan_in)


@pytest.mark.parametrize(("method", "options"), [("ofa", {}), ("hcd", {}), ("rsd", {"on": "stages"})])
def test_projectors_start_as_published(method, options):
    seen = set()
    for module in trained_only(method, **options).modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)
        elif isinstance(module, nn.Linear):
            check_linear(module.weight)
        else:
            continue
        seen.add(type(module))
        assert module.bias is None or not module.bias.any()
    assert seen == ({nn.Conv2d} if method == "hcd" else {nn.Conv2d, nn.Linear})


def test_mappers_start_as_published():
    mappers = trained_only("hcd").mappers
    check_linear(mappers.mix)
    check_linear(mappers.classify)
    assert not mappers.mix_bias.any()
    assert not mappers.classify_bias.any()
