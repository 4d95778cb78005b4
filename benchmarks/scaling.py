"""Measure how the cost of a loss grows, how long a cache takes to write, and the speed of two processes."""

import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from benchmarks.pairs import BATCH, CLASSES, MODELS, TEACHERS, Bench
from benchmarks.steps import flops, seconds
from crossdistill.cache import CacheFormat, Work, build_cache
from crossdistill.losses import dist_loss, dkd_loss, info_nce_loss, kd_loss, ofa_loss, rsd_loss

_BATCHES = (32, 128, 512)
_WIDTHS = (64, 192, 512, 1024, 2048)
_CLASSES = (10, 100, 1000, 21_843)


def _timed(run: Any, device: torch.device, repeats: int = 5) -> float:
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        start = seconds(device)
        run()
        times.append(seconds(device) - start)
    return median(times)


def rsd_flops(batch: int, width: int) -> int:
    """Count what RSD's loss must multiply and add: forward, and backward to the student.

    Products of B x D matrices, through D x D, or through B x B where that is smaller.
    """
    return 4 * batch * width * width if width <= batch else 6 * batch * batch * width


def losses(device: str) -> dict[str, Any]:
    """Time forward and backward of losses alone against batch size, teacher width and classes."""
    where = torch.device(device)

    def pair(batch: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(batch, width, device=where, requires_grad=True), torch.randn(batch, width, device=where)

    found: dict[str, Any] = {"rsd": [], "logits": []}
    for batch in _BATCHES:
        for width in _WIDTHS:
            ours, theirs = pair(batch, width)
            took = _timed(lambda o=ours, t=theirs: rsd_loss(o, t, kappa=0.01).backward(), where)
            found["rsd"].append({"batch": batch, "width": width, "seconds": took, "flops": rsd_flops(batch, width)})
    for classes in _CLASSES:
        ours, theirs = pair(128, classes)
        target = torch.arange(128, device=where) % classes
        row: dict[str, Any] = {"classes": classes, "batch": 128}
        row["kd"] = _timed(lambda o=ours, t=theirs: kd_loss(o, t, temperature=4.0).backward(), where)
        row["dkd"] = _timed(lambda o=ours, t=theirs, y=target: dkd_loss(o, t, y).backward(), where)
        row["dist"] = _timed(lambda o=ours, t=theirs: dist_loss(o, t).backward(), where)
        row["ofa"] = _timed(lambda o=ours, t=theirs, y=target: ofa_loss(o, t, y, eps=1.0).backward(), where)
        found["logits"].append(row)
    ours, theirs = pair(512, 128)
    found["info_nce_512x128"] = _timed(lambda: info_nce_loss(ours, theirs, temperature=0.07).backward(), where)
    return found


def build(family: str, size: int, device: str, precision: str) -> dict[str, Any]:
    """Compare writing one view of some images with a teacher's forward over the same views."""
    bench = Bench(MODELS[size]["cnn"], TEACHERS[size][family], size, BATCH[device][size], device, precision)
    teacher = bench.distiller("kd").teacher
    starts = range(0, len(bench.views), bench.batch)
    batches = [[(index, 0) for index in range(first, first + bench.batch)] for first in starts]
    fmt = CacheFormat(len(bench.views), teacher.spec.embedding_dim, CLASSES)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(6):
            start = seconds(bench.device)
            for batch in batches:
                with torch.no_grad(), bench.autocast():
                    teacher(bench.views.__getitems__(batch).images)
            middle = seconds(bench.device)
            work = Work(teacher, bench.views, bench.batch, precision=precision)
            build_cache(Path(folder) / str(turn), fmt, {"version": 0}, 1, work, Console(quiet=True))
            ratios.append((seconds(bench.device) - middle) / (middle - start))
    return {
        "teacher": teacher.spec.name,
        "size": size,
        "images": len(bench.views),
        "ratio": median(ratios[1:]),
        "bytes_per_view": fmt.row.itemsize,
    }


def _train(rank: int, world: int, rendezvous: str, size: int, steps: int, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    bench = Bench(MODELS[size]["cnn"], TEACHERS[size]["vit"], size, BATCH["cpu"][size], "cpu", "32")
    module = DistributedDataParallel(bench.distiller("rsd"))
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        batch = bench.views.__getitems__(bench.keys)
        module(batch.images, batch.targets).loss.backward()
        module.zero_grad()
        times.append(time.perf_counter() - start)
    results.put(median(times[2:]))
    dist.destroy_process_group()


def processes(size: int, steps: int) -> dict[str, Any]:
    """Time a step of RSD with a full batch on each of 1 and 2 gloo processes, in wall-clock time."""
    # Spawned: autograd on a GPU does not work in a forked process.
    context = multiprocessing.get_context("spawn")
    found: dict[str, Any] = {"size": size, "batch_per_process": BATCH["cpu"][size]}
    for world in (1, 2):
        results = context.Queue()
        with tempfile.TemporaryDirectory() as folder:
            started = [
                context.Process(target=_train, args=(rank, world, f"{folder}/meet", size, steps, results))
                for rank in range(world)
            ]
            for process in started:
                process.start()
            found[f"seconds_{world}"] = max(results.get(timeout=600) for _ in started)
            for process in started:
                process.join()
    found["efficiency"] = found["seconds_1"] / found["seconds_2"]
    return found


def bend(student_size: int = 224) -> list[dict[str, Any]]:
    """Compute the teacher width at which RSD's loss costs 1% of a student's step, by operations."""
    found = []
    for size in (32, student_size):
        bench = Bench(MODELS[size]["cnn"], TEACHERS[size]["vit"], size, 8, "cpu", "32")
        each = flops(bench.case("student alone", "none")) / 8
        for batch in (128, 1024):
            width = 1
            while rsd_flops(batch, width) < 0.01 * each * batch:
                width += 1
            found.append({"student": bench.spec.name, "size": size, "batch": batch, "width_for_1_percent": width})
    return found
