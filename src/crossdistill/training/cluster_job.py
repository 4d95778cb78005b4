"""One job of a cluster: a command in a process of its own. Importing this needs submitit."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from submitit.helpers import Checkpointable, DelayedSubmission

from crossdistill.training.workers import SINCE

_SAVING_S = 75.0
"""Seconds that a job has to save a checkpoint; submitit's warning comes 90 s before the time limit."""
_TASK = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
"""What Lightning reads as the place of a process in a run over several."""


class ClusterJob(Checkpointable):  # type: ignore[misc]
    """A job that runs a command. Slurm sends the warning before a time limit to all processes; the child ignores it."""

    def __init__(self, words: Sequence[str], since: float, *, own_session: bool) -> None:
        self.words, self.since, self.own_session = list(words), since, own_session
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Run the command, and return its exit code."""
        # A job is one process of its own, not a part of a run over several.
        inherited = {name: value for name, value in os.environ.items() if name not in _TASK}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "crossdistill", *self.words],
            env={**inherited, SINCE: str(self.since)},
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
            # A terminal's Ctrl-C reaches this process, which passes it on once; Slurm finds all of its processes by
            # their group.
            start_new_session=self.own_session,
        )
        try:
            return self.child.wait()
        except KeyboardInterrupt:
            self.child.send_signal(signal.SIGINT)
            return self.child.wait()

    def checkpoint(self) -> Any:
        """Stop the child, which saves a checkpoint, and queue the job again."""
        end = time.monotonic() + _SAVING_S
        with contextlib.suppress(ChildProcessError):
            if self.child is not None:
                self.child.terminate()
            # `Popen.wait` would wait for the lock of the call that this one interrupts.
            ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
            while self.child is not None and not os.waitid(os.P_PID, self.child.pid, ended):
                if time.monotonic() > end:
                    break
                time.sleep(0.2)
        return DelayedSubmission(ClusterJob(self.words, self.since, own_session=self.own_session))
