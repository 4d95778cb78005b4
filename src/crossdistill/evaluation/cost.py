"""The cost of a model: parameters, operations, speed."""

import copy
import statistics
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from crossdistill.backbones import Backbone, probe_images
from crossdistill.image_size import sides_of


def count_parameters(module: nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def count_macs(backbone: Backbone) -> int:
    """Count the multiply-accumulates of one image's forward pass (half of the FLOPs), as torch counts them.

    Matrix products, convolutions and attention count; element-wise operations do not.
    """
    # torch 2.11 counts only where no leaf requires a gradient.
    copied = copy.deepcopy(backbone).eval().requires_grad_(False)
    try:
        return _count(copied.to("meta"))
    except (NotImplementedError, RuntimeError):
        # The model computes with values, or holds tensors that are not moved to the meta device.
        return _count(copy.deepcopy(backbone).eval().requires_grad_(False))


def _count(backbone: Backbone) -> int:
    images = probe_images(backbone, backbone.spec.in_chans, backbone.img_size)
    with FlopCounterMode(display=False) as counter:
        backbone(images)
    return counter.get_total_flops() // (2 * len(images))


@torch.inference_mode()
def images_per_second(backbone: Backbone, batch_size: int = 32, repeats: int = 5) -> float:
    """Time the forward pass on the model's device: the median of a few batches, after a warm-up batch."""
    device = next(backbone.parameters()).device
    shape = (batch_size, backbone.spec.in_chans, *sides_of(backbone.img_size))
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    training = backbone.training
    backbone.eval()
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        backbone(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    backbone.train(training)
    return batch_size / statistics.median(seconds[1:])
