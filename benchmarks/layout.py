"""Measure how channels-last images and weights change the time of a training step (`engine.channels_last`)."""

import copy
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2

import crossdistill as cd
from benchmarks.steps import Case, paired, quartiles

MODELS = [
    ("resnet10t", 32, {}),
    ("test_vit", 32, {"patch_size": 4}),
    ("timm.models.mlp_mixer:MlpMixer", 32, {"patch_size": 4, "embed_dim": 96, "num_blocks": 8}),
    ("mobilevitv2_050", 32, {}),
    ("resnet10t", 64, {}),
    ("mobilenetv3_small_100", 96, {}),
    ("mobilevitv2_050", 96, {}),
    ("convnext_atto", 96, {}),
    ("vit_tiny_patch16_224", 96, {}),
    ("swin_tiny_patch4_window7_224", 96, {"embed_dim": 32, "depths": (1, 1, 2, 1), "window_size": 3}),
    ("resmlp_12_224", 224, {}),
    ("resnet18", 224, {}),
    ("vit_tiny_patch16_224", 224, {}),
]


def measure(device: str, precision: str, repeats: int, say: Any) -> list[dict[str, Any]]:
    """Time a step of each model with both layouts, in turns."""
    found = []
    for name, size, args in MODELS:
        say(f"layout of {name} at {size} px")
        torch.manual_seed(0)
        batch = (64 if size <= 64 else 32 if size <= 96 else 8) * (1 if device == "cpu" else 8)
        model = cd.create_backbone(name, 100, size, **args).to(device).train()
        cases = [_case(model, last, batch, size, device, precision) for last in (False, True)]
        times = paired(cases, repeats, torch.device(device))
        ratios = [c / p for c, p in zip(times["channels last"], times["contiguous"], strict=True)]
        found.append({"model": name, "size": size, "ratio": median(ratios), "quartiles": quartiles(ratios)})
    return found


def _case(model: Any, channels_last: bool, batch: int, size: int, device: str, precision: str) -> Case:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student = copy.deepcopy(model).to(memory_format=layout)
    optimizer = create_optimizer_v2(student, "adamw", lr=1e-4, weight_decay=0.05, fused=True)
    images, targets = torch.randn(batch, 3, size, size, device=device), torch.arange(batch, device=device) % 100

    def step() -> None:
        # Images come from the loader in the usual layout.
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            logits = student(images.contiguous(memory_format=layout)).logits
        F.cross_entropy(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Case("channels last" if channels_last else "contiguous", step, student, optimizer)
