"""`python -m benchmarks` prints every figure of docs/performance.md, and writes them as JSON with a plot.

Ratios within one run on one machine; on the CPU by CPU time and one thread, on a GPU by wall-clock time. Run
it alone: `--sizes 32` takes a few minutes, 224 px longer.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console

from benchmarks import allocator, layout, plot, report, scaling, steps, waiting
from benchmarks.pairs import METHODS
from crossdistill.training.run_folder import environment

PARTS = ("steps", "losses", "build", "processes", "waiting", "layout", "allocator")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="What to measure, with commas.")
    parser.add_argument("--sizes", default="32,224", help="Image sides in pixels, with commas: 32, 224.")
    parser.add_argument("--methods", default=",".join(METHODS), help="Methods of the steps, with commas.")
    parser.add_argument("--repeats", type=int, default=None, help="Paired steps; 15 at 32 px and 5 at 224 by default.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default=None, choices=("32", "bf16"))
    parser.add_argument("--cifar100", default=None, help="Parquet folder of CIFAR-100, for the wait for data.")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    device = "cuda" if given.device.startswith("cuda") else "cpu"
    precision = given.precision or ("bf16" if device == "cuda" else "32")
    sizes = [int(size) for size in given.sizes.split(",")]
    default = {32: 15, 224: 5} if device == "cpu" else {32: 50, 224: 50}
    repeats = {size: given.repeats or default[size] for size in sizes}
    wanted = given.parts.split(",")
    methods = given.methods.split(",")
    found: dict[str, Any] = {
        "environment": {**asdict(environment(1, {})), "cores": os.cpu_count(), "machine": platform.machine()},
        "device": device,
        "precision": precision,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    measures = {
        "steps": lambda: steps.measure(sizes, device, repeats, precision, methods, console.print),
        "losses": lambda: {**scaling.losses(device), "bend": scaling.bend()},
        "build": lambda: [
            scaling.build(family, size, device, precision) for size in sizes for family in ("cnn", "vit")
        ],
        "processes": lambda: scaling.processes(32, 15),
        "waiting": lambda: waiting.waiting(given.cifar100),
        "layout": lambda: layout.measure(device, precision, given.repeats or 9, console.print),
        "allocator": lambda: allocator.measure(console.print),
    }
    for part in PARTS:
        if part in wanted:
            console.print(f"[bold]{part}")
            found[part] = measures[part]()
            # Written after each part, so that a later failure loses nothing.
            (given.out / "benchmarks.json").write_text(json.dumps(found, indent=1))
    text = report.as_markdown(found)
    (given.out / "benchmarks.md").write_text(text)
    print(text)
    if "steps" in found:
        plot.draw(found["steps"], given.out / "benchmarks.png")
    console.print(f"written to {given.out}")


if __name__ == "__main__":
    main()
