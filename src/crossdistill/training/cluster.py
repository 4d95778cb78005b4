"""Jobs of a cluster that train the runs of one comparison, submitted by submitit."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from crossdistill.errors import UserError, first_line

_FOLDER = ".jobs"
"""Folder of the jobs' logs, in that of the comparison."""
_POLL_S = 2.0
"""Seconds between two looks at the jobs."""
_LOCAL_LIMIT_MIN = 30 * 24 * 60
"""Minutes after which a job on this machine is stopped; for Slurm the user states them."""
_MOST_TIMEOUTS = 100
"""How often a job is queued again after its time limit."""


def run_jobs(
    words: Sequence[str],
    jobs: int,
    out: Path,
    console: Console,
    *,
    cluster: str,
    parameters: dict[str, Any],
    since: float,
    finished: Callable[[], int],
) -> None:
    """Run the command `words` as `jobs` jobs of a cluster ("slurm", or "local" for this machine), and wait for them.

    The jobs share the folder of the comparison, as processes on one machine do. A job that is preempted or reaches its
    time limit is queued again, and goes on. `parameters` are those of `submitit.AutoExecutor`; `finished` returns the
    number of finished runs, for progress. Raises UserError where the jobs cannot be submitted; a job that fails later
    is named on the console.
    """
    if cluster == "slurm" and not {"timeout_min", "slurm_time"} & set(parameters):
        raise UserError(
            "--cluster-parameters states no time limit, and submitit's own is 5 minutes: add timeout_min, e.g. 240"
        )
    for name in ("tasks_per_node", "nodes"):
        if parameters.get(name, 1) != 1:
            raise UserError(
                f"--cluster-parameters: {name} is {parameters[name]}; each job is one process: leave it out"
            )
    logs = out / _FOLDER
    try:
        submitted = _submit(words, jobs, logs, cluster, parameters, since)
    except ImportError as error:
        raise UserError("--cluster needs submitit: pip install 'crossdistill[cluster]'") from error
    except Exception as error:  # sbatch, a wrong parameter and a missing cluster raise many kinds
        raise UserError(f"the jobs cannot be submitted to {cluster!r}: {first_line(error)}") from error
    plain: dict[str, Any] = dict(highlight=False, markup=False, soft_wrap=True)
    console.print(f"submitted {jobs} jobs to {cluster!r}, the first is {submitted[0].job_id}; logs: {logs}", **plain)
    try:
        _wait(submitted, finished, lambda text: console.print(text, **plain))
    except KeyboardInterrupt:
        if cluster == "local":
            _stop(submitted)
            console.print("the jobs save their checkpoints and end; the same command goes on", **plain)
        else:
            console.print(f"the jobs go on; `crossdistill report {out}` shows what is finished", **plain)
        raise


def _submit(
    words: Sequence[str], jobs: int, logs: Path, cluster: str, parameters: dict[str, Any], since: float
) -> list[Any]:
    """Submit the jobs as one array."""
    import submitit

    from crossdistill.training.cluster_job import ClusterJob

    executor = submitit.AutoExecutor(logs, cluster, **{f"{cluster}_max_num_timeout": _MOST_TIMEOUTS})
    limit = {"timeout_min": _LOCAL_LIMIT_MIN} if cluster == "local" else {}
    executor.update_parameters(**{"name": "crossdistill", **limit, **parameters})
    with executor.batch():
        return [executor.submit(ClusterJob(words, since, own_session=cluster == "local")) for _ in range(jobs)]


def _stop(jobs: Sequence[Any]) -> None:
    """Interrupt jobs on this machine; submitit kills them after a second, but not the commands that they started."""
    for job in jobs:
        job.cancel()
    while not all(job.done() for job in jobs):
        time.sleep(_POLL_S / 10)


def _wait(jobs: Sequence[Any], finished: Callable[[], int], say: Callable[[str], None]) -> None:
    """Wait until all jobs have ended, show how many runs are finished, and name the jobs that failed."""
    shown = -1
    while True:
        running = [job for job in jobs if not job.done()]
        now = finished()
        if now != shown:
            say(f"{now} runs finished, {len(running)} jobs queued or running")
        if not running:
            break
        shown = now
        time.sleep(_POLL_S)
    for job in jobs:
        try:
            code = job.result()
        except Exception as error:  # a job can fail in as many ways as a machine
            say(f"job {job.job_id} failed ({first_line(error)}): {job.paths.stderr}")
        else:
            if code:
                say(f"job {job.job_id} ended with exit code {code}: {job.paths.stderr}")
