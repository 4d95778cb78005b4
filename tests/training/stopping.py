"""Methods that stop their own run with a real signal, at a known batch."""

import os
import signal

from crossdistill.methods import Method
from crossdistill.methods.rsd import RSD


class Stopping(Method):
    idea = "Plain training that is told to stop at a batch, once."
    paper = "-"

    def __init__(self, options, student, teacher):
        super().__init__(options, student, teacher)
        self.seen = 0

    def forward(self, student, teacher, targets):
        self.seen += 1
        if self.seen == int(os.environ.get("STOP_AT", "-1")):
            signal.raise_signal(signal.SIGTERM)
        return {}


class StoppingRSD(RSD):
    seen = 0

    def forward(self, student, teacher, targets):
        self.seen += 1
        if self.seen == int(os.environ.get("STOP_AT", "-1")):
            signal.raise_signal(signal.SIGTERM)
        return super().forward(student, teacher, targets)
