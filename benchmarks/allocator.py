"""Measure what glibc's allocator adds to a forward pass on the CPU: the same pass where freed memory is kept.

By default glibc returns large blocks to the system when they are freed, and the system clears every page that it gives
out again. The variables of KEEP turn that off; they are read when a process starts.
"""

import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

import timm
import torch

KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1099511627776"}
MODELS = [
    ("tf_efficientnet_lite0", 96, 128),
    ("resnet18", 224, 32),
    ("vit_tiny_patch16_224", 224, 32),
]
_PROCESSES = 3
_PASSES = 3


def measure(say: Any) -> list[dict[str, Any]]:
    """Time forward passes of each model in processes of both kinds, in turns."""
    found = []
    for name, size, batch in MODELS:
        say(f"allocator: {name} at {size} px")
        times: dict[str, list[float]] = {"default": [], "kept": []}
        for _ in range(_PROCESSES):
            for kind, values in times.items():
                values.append(_in_a_process(name, size, batch, keep=kind == "kept"))
        ratio = median(times["default"]) / median(times["kept"])
        found.append({"model": name, "size": size, "batch": batch, "ratio": ratio, "seconds": times})
    return found


def _in_a_process(name: str, size: int, batch: int, *, keep: bool) -> float:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    words = [sys.executable, "-m", "benchmarks.allocator", name, str(size), str(batch)]
    made = subprocess.run(words, env={**plain, **(KEEP if keep else {})}, capture_output=True, text=True, check=True)
    return float(json.loads(made.stdout))


@torch.inference_mode()
def forward_seconds(name: str, size: int, batch: int) -> float:
    """Return the CPU time of one forward pass, the median of a few, after one that is not counted."""
    model, images = timm.create_model(name).eval(), torch.randn(batch, 3, size, size)
    times = []
    for _ in range(_PASSES + 1):
        start = time.process_time()
        model(images)
        times.append(time.process_time() - start)
    return median(times[1:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(forward_seconds(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
