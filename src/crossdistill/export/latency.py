"""How long the forms of a model take on this machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

BATCHES = (1, 32)
_SECONDS = 1.0
_FEWEST, _MOST = 5, 200


def milliseconds(run: Callable[[], Any]) -> float:
    """Return the median time of a call, after one that is not counted, over about a second and at least five calls."""
    run()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _FEWEST or (len(times) < _MOST and time.perf_counter() - start < _SECONDS):
        before = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - before))
    return statistics.median(times)


def latency(calls: Mapping[str, Callable[[int], Any]]) -> dict[str, dict[str, float]]:
    """Time each model, a function of the batch size, with all batch sizes: milliseconds a batch, by name and size.

    `calls` return a function that runs one batch.
    """
    return {name: {str(size): milliseconds(make(size)) for size in BATCHES} for name, make in calls.items()}
