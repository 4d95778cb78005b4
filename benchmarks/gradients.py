"""`python -m benchmarks.gradients FIT-FLAGS` trains as `crossdistill fit` does, and measures the gradient of each term.

It prints, as Markdown, the norm of each weighted term's gradient with respect to all weights of the student, relative
to that of the task's loss, and the cosine of the two: over parts of the run, from single steps (`--every`). A run
without a task loss is compared with the sum of the terms. The training itself is that of `fit`, but slower.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from rich.console import Console
from torch import Tensor

from crossdistill.commands._run import RunParser
from crossdistill.training.fit import prepare
from crossdistill.training.run_lock import RunLock
from crossdistill.types import StepResult

PARTS = 4
"""Parts of the run that have a column each, after that of the first step."""


class TermGradients(L.Callback):
    """Measures, before the backward pass of every n-th step, the gradients of the terms one by one."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: dict[int, dict[str, tuple[float, float]]] = {}
        """By step and term: the norm relative to the reference, and the cosine with it."""
        self._step: StepResult | None = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep what the distiller returns of each step."""
        module.distiller.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, output: StepResult) -> None:
        self._step = output if module.training else None

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        """Measure a step; the gradients of the training are left as they are."""
        step = trainer.global_step
        if step % self.every or self._step is None:
            return
        distiller = module.distiller
        parameters = [p for p in distiller.student.parameters() if p.requires_grad]
        factors = dict.fromkeys(distiller.weights, 1.0)
        measured = distiller.balance_factors()
        for group in [] if distiller.method is None else distiller.method.groups():
            factors |= {name: measured.get(group.method.lower(), 1.0) for name in group.terms}
        losses = {name: factors[name] * weight * self._step.terms[name] for name, weight in distiller.weights.items()}
        total = sum(losses.values())
        losses = {"task": distiller.task_weight * self._step.terms["task"], **losses}
        flat = {name: _flat(one, parameters) for name, one in losses.items() if one.requires_grad}
        reference = flat["task"] if "task" in flat else _flat(total, parameters)
        self.rows[step] = {
            name: (
                float(gradient.norm() / reference.norm()),
                float(torch.cosine_similarity(gradient, reference, dim=0)),
            )
            for name, gradient in flat.items()
        }


def _flat(loss: Any, parameters: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def as_markdown(rows: dict[int, dict[str, tuple[float, float]]]) -> Iterator[str]:
    """Yield a table: a row for each term; a column for the first step and for each part of the run."""
    steps = sorted(rows)
    size = math.ceil(len(steps) / PARTS)
    parts = [steps[:1], *(steps[start : start + size] for start in range(0, len(steps), size))]
    heads = ["first step", *(f"steps {part[0]} to {part[-1]}" for part in parts[1:])]
    yield f"| gradient of | {' | '.join(heads)} |"
    yield f"| --- |{' --- |' * len(heads)}"
    for name in rows[steps[0]]:
        cells = []
        for part in parts:
            norm, cosine = (sum(rows[step][name][i] for step in part) / len(part) for i in (0, 1))
            cells.append(f"{norm:.2f} ({cosine:+.2f})")
        yield f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    own = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__, allow_abbrev=False)
    own.add_argument("--every", type=int, default=10, help="Steps from one measurement to the next.")
    given, words = own.parse_known_args()
    config, _ = RunParser("fit", "").read_run(words)
    lock, gradients = RunLock(), TermGradients(given.every)
    try:
        run = prepare(config, Console(stderr=True), lock)
        run.trainer.callbacks.append(gradients)  # type: ignore[attr-defined]
        run.trainer.fit(run.module, run.datamodule)
    finally:
        lock.release()
    print("norm relative to the task's (cosine with it), mean over the measured steps\n")
    print("\n".join(as_markdown(gradients.rows)))


if __name__ == "__main__":
    sys.exit(main())
