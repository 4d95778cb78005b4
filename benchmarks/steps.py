"""Time and memory of a training step, as ratios to the step of the student alone."""

import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.pairs import BATCH, MODELS, PAIRS, TEACHERS, Bench, Case, caches

ALONE, TEACHER = "student alone", "teacher forward"
_WARMUP = 2


def seconds(device: torch.device) -> float:
    """CPU time of this process (it has one thread), which other processes disturb little; on a GPU wall-clock time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def paired(cases: list[Case], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Time one step of each case in turn, in a new order each time."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(_WARMUP + repeats):
        for case in random.Random(turn).sample(cases, len(cases)):
            start = seconds(device)
            case.step()
            if turn >= _WARMUP:
                times[case.name].append(seconds(device) - start)
            else:
                seconds(device)
    return times


def flops(case: Case) -> int:
    """Count the multiplications and additions of a step, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        case.step()
    return int(counter.get_total_flops())


def peak_bytes(case: Case, device: torch.device) -> int:
    """Measure the peak memory of a step: weights, gradients, optimiser, activations, and the teacher if any."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        case.step()
        return int(torch.cuda.max_memory_allocated())
    held = [*case.distiller.parameters(), *case.distiller.buffers()]
    teacher = case.distiller.teacher
    held += [] if teacher is None else [*teacher.parameters(), *teacher.buffers()]
    # A stage of the teacher that a method runs is not a submodule of anything that is trained.
    held += [tensor for tail in case.distiller.borrowed for tensor in tail.tensors()]
    for state in case.optimizer.state.values():
        held += [value for value in state.values() if isinstance(value, torch.Tensor)]
    resting = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        case.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        level += event["args"]["Bytes"]
        highest = max(highest, level)
    return resting + highest


def measure_pair(
    student: str, teacher: str, size: int, device: str, repeats: int, precision: str, methods: Sequence[str]
) -> dict[str, Any]:
    """Measure all cases of one pair: time in turns, then operations and memory of each alone."""
    batch = BATCH[device][size]
    bench = Bench(MODELS[size][student], TEACHERS[size][teacher], size, batch, device, precision)
    with caches(bench) as stored:
        makers: dict[str, Callable[[], Case]] = {
            ALONE: lambda: bench.case(ALONE, "none"),
            TEACHER: bench.teacher_forward,
        }
        for method in methods:
            cache = stored(method)
            makers[f"{method} online"] = partial(bench.case, f"{method} online", method)
            makers[f"{method} cached"] = partial(bench.case, f"{method} cached", method, cache)
        times = paired([make() for make in makers.values()], repeats, bench.device)
        alone = costs(makers[ALONE], bench.device)
        rows = []
        for name, make in makers.items():
            ratios = [t / a for t, a in zip(times[name], times[ALONE], strict=True)]
            both = [t / (a + f) for t, a, f in zip(times[name], times[ALONE], times[TEACHER], strict=True)]
            cost = costs(make, bench.device)
            rows.append(
                {
                    "case": name,
                    "seconds": median(times[name]),
                    "ratio": median(ratios),
                    "quartiles": quartiles(ratios),
                    "ratio_to_student_and_teacher": median(both) if name.endswith("online") else None,
                    "floor": cost["flops"] / alone["flops"],
                    "trained": cost["trained"] / alone["trained"] if cost["bytes"] else None,
                    "memory": cost["bytes"] / alone["bytes"] if cost["bytes"] else None,
                }
            )
    return {
        "student": bench.student.spec.name,
        "teacher": bench.teacher.spec.name,
        "pair": f"{student} <- {teacher}",
        "size": size,
        "batch": batch,
        "repeats": repeats,
        "alone": alone,
        "rows": rows,
    }


def costs(make: Callable[[], Case], device: torch.device) -> dict[str, float]:
    """Count operations, trained parameters and peak bytes of a case that is alone in memory; 0 bytes for a forward."""
    case = make()
    counted = {
        # This step also makes the optimiser's state.
        "flops": flops(case),
        "trained": sum(p.numel() for p in case.distiller.parameters()),
        "bytes": 0 if case.optimizer is None else peak_bytes(case, device),
    }
    del case
    gc.collect()
    return counted


def quartiles(values: list[float]) -> list[float]:
    """Return the lower and the upper quartile."""
    ordered = sorted(values)
    return [ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]]


def measure(
    sizes: list[int], device: str, repeats: dict[int, int], precision: str, methods: Sequence[str], say: Any
) -> list[dict[str, Any]]:
    """Measure all pairs at all sizes."""
    found = []
    for size in sizes:
        for student, teacher in PAIRS:
            say(f"steps at {size} px: {student} <- {teacher}")
            found.append(measure_pair(student, teacher, size, device, repeats[size], precision, methods))
    return found
