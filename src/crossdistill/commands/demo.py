"""`crossdistill demo`."""

from collections.abc import Sequence

from crossdistill.commands.compare import run_comparison

ABOUT = "Train a teacher on scikit-learn's digits, then one student with none, kd and rsd; a few minutes on a CPU."


def run(argv: Sequence[str]) -> int:
    """Run every step on the embedded data."""
    return run_comparison("demo", ABOUT, argv, "demo", "runs/demo", inspect=True)
