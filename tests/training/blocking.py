"""A method that makes it impossible to write a file, in its second epoch."""

import os
from pathlib import Path

from crossdistill.methods import Method


class Blocking(Method):
    calls = 0

    def forward(self, student, teacher, targets):
        self.calls += 1
        if self.calls == 7:
            Path(os.environ["BLOCK"]).mkdir()
        return {}
