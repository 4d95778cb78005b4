"""How long the forms of a model take on this machine."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

BATCHES = (1, 32)
_TURNS = 5
_SECONDS, _MOST = 0.2, 40
"""The length of a turn, and the most batches in it."""


def latency(calls: Mapping[str, Callable[[int], Callable[[], Any]]]) -> dict[str, dict[str, float]]:
    """Time each model, a function of the batch size, with all batch sizes: milliseconds a batch, by name and size.

    `calls` return a function that runs one batch. The value is the median over about a second and at least five
    batches, after one that is not counted. The models take turns, so that what else the machine does meets all of them.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in calls}
    for size in BATCHES:
        for name, value in _in_turns({name: make(size) for name, make in calls.items()}).items():
            found[name][str(size)] = value
    return found


def _in_turns(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(_TURNS):
        for name, call in calls.items():
            times[name] += _turn(call)
    return {name: statistics.median(taken) for name, taken in times.items()}


def _turn(call: Callable[[], Any]) -> list[float]:
    """Time some calls in a row: threads that the model before has left spinning disturb the first alone."""
    times: list[float] = []
    while len(times) < _MOST and sum(times) < 1000 * _SECONDS:
        before = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - before))
    return times
