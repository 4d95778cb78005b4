"""A method whose term is not finite in known calls."""

import os

from crossdistill.methods import Method


class Diverging(Method):
    """NaN (or what WRONG says) in the calls that BAD_AT lists, from 1; in all processes, or that of BAD_RANK."""

    def __init__(self, options, student, teacher):
        super().__init__(options, student, teacher)
        self.weights = {"mine": 1.0}
        self.calls = 0

    def forward(self, student, teacher, targets):
        self.calls += 1
        bad = self.calls in [int(call) for call in os.environ["BAD_AT"].split(",")]
        rank = os.environ.get("LOCAL_RANK", "0")
        bad = bad and rank == os.environ.get("BAD_RANK", rank)
        factor = float(os.environ.get("WRONG", "nan")) if bad else 0.01
        return {"mine": student.logits.float().square().mean() * factor}
