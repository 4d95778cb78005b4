"""Several processes that train the runs of one comparison on one machine."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO

import torch
from rich.console import Console

from crossdistill.training.callbacks import Interrupted

SINCE = "CROSSDISTILL_COMPARE_SINCE"
"""Environment variable of the processes: when the command began, in seconds since 1970."""


def run_workers(words: Sequence[str], jobs: int, since: float, console: Console, *, threads: bool) -> None:
    """Run the command `words` in `jobs` processes, and return when all have ended.

    Each has its own GPU, in turn, where there are GPUs. With `threads` the CPU threads of the machine are divided among
    them. Their progress is shown with the number of the process in front. A signal is passed on to them once, and
    raised when they have saved their checkpoints: `Interrupted`.
    """
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    share = ["--engine.threads", str(max(1, (os.cpu_count() or 1) // jobs))] if threads else []
    workers: list[tuple[subprocess.Popen[str], threading.Thread]] = []
    with _signals() as received:
        for number in range(jobs):
            device = {"CUDA_VISIBLE_DEVICES": visible[number % count]} if count else {}
            worker = subprocess.Popen(
                [sys.executable, "-m", "crossdistill", *words, *share],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**os.environ, SINCE: str(since), **device},
                # The terminal's signals reach this process alone.
                start_new_session=True,
            )
            assert worker.stderr is not None
            relay = threading.Thread(target=_relay, args=(worker.stderr, f"[{number + 1}] ", console), daemon=True)
            relay.start()
            workers.append((worker, relay))
        passed_on = 0
        while any(relay.is_alive() for _, relay in workers):
            pending, passed_on = received[passed_on:], len(received)
            for worker, relay in workers:
                for signum in pending:
                    # They save a checkpoint for SIGTERM, not for the end of a terminal.
                    worker.send_signal(signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)
                relay.join(timeout=0.2 / len(workers))
        for number, (worker, _) in enumerate(workers, 1):
            if worker.wait() < 0 and not received:
                name = signal.Signals(-worker.returncode).name
                text = f"process {number} was ended by {name}; what it has not finished is trained by this one"
                console.print(text, highlight=False, markup=False, soft_wrap=True)
    if received:
        raise Interrupted(received[0])


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in place of what they usually do; one that is ignored stays ignored."""
    received: list[int] = []

    def receive(signum: int, frame: FrameType | None) -> None:
        received.append(signum)

    collected = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        collected.append(signal.SIGHUP)
    before = {number: signal.signal(number, receive) for number in collected}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _relay(stream: IO[str], prefix: str, console: Console) -> None:
    for line in stream:
        console.print(prefix + line.rstrip(), highlight=False, markup=False, soft_wrap=True)
