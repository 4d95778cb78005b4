"""Numbers that are not finite: found without waiting for the device in every step, named, and never stored."""

import json
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from crossdistill.errors import UserError
from crossdistill.files import write_whole
from crossdistill.training.module import DistillModule
from crossdistill.training.run_log import row_is_due
from crossdistill.types import Batch

NOT_FINITE_NAME = "not-finite.json"
_LARGEST = 1e10
"""Size from which a weight has diverged: many orders of magnitude above those of trained networks."""
_MOST_IN_A_ROW = 10


@dataclass(frozen=True)
class Finding:
    """The first number of a run that is not finite: its name and value, and the batch that it comes from."""

    term: str
    value: str
    step: int
    """Optimiser step, from 1."""
    epoch: int
    """From 1."""
    images: list[int]
    """Numbers of the batch's images in the training set, in the process that found it."""


class FiniteCheck(L.Callback):
    """Stop a run whose loss terms or weights are not finite. Raises UserError, and stores nothing.

    The terms stay on the device and are looked at with every log row; terms and weights are looked at before every
    checkpoint. The numbers of the batch's images are written into the run's folder. With `on_nan` "skip" the loss is
    looked at in every step: where it is not finite in any process, the optimiser step is left out, and the batch's
    changes of buffers are undone. Ten such batches in a row stop the run.
    """

    def __init__(self, out: Path, every: int, on_nan: Literal["stop", "skip"], console: Console) -> None:
        self.out, self.every, self.skips, self.console = out, every, on_nan == "skip", console
        self._steps: list[tuple[int, int, dict[str, Tensor], Tensor]] = []
        self._constant: set[str] = set()
        self._before: list[Tensor] = []
        self._bad_batch = False
        self._left_out = self._in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """Store the number of batches left out."""
        return {"left_out": self._left_out}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count after a resume."""
        self._left_out = state_dict["left_out"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse initial weights that are not finite. Buffers may be so by design, and are then not looked at."""
        bad = _diverged(pl_module)
        parameters = {name for name, _ in pl_module.named_parameters()}
        for name, value in bad.items():
            if name in parameters:
                raise UserError(f"the initial weight {name!r} is {value}; give other weights")
        self._constant = set(bad)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the buffers, where a batch may be left out."""
        self._bad_batch = False
        if self.skips:
            self._before = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Look at the loss of this batch, where it may be left out."""
        if self.skips:
            finite = bool(torch.isfinite(loss.detach()))
            self._bad_batch = not trainer.strategy.reduce_boolean_decision(finite)
            assert isinstance(pl_module, DistillModule)
            pl_module.leaves_out |= self._bad_batch

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the terms of this step; look at them where a log row is due."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        step = trainer.global_step + (0 if stepped else 1)
        self._steps.append((step, trainer.current_epoch + 1, outputs["terms"], batch.index))
        self._in_a_row = self._in_a_row + 1 if self._bad_batch else 0
        if self._bad_batch:
            self._undo(pl_module)
        if stepped:
            assert isinstance(pl_module, DistillModule)
            pl_module.leaves_out = False
        if row_is_due(trainer, batch_idx, self.every) or self._in_a_row == _MOST_IN_A_ROW:
            self._look_at_terms(trainer)
        if trainer.is_last_batch:
            self._look_at_weights(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look at everything before it is stored."""
        self._look_at_terms(trainer)
        self._look_at_weights(trainer, pl_module)

    @torch.no_grad()
    def _undo(self, pl_module: L.LightningModule) -> None:
        """Undo the changes of a batch that is left out, and say so."""
        for buffer, before in zip(pl_module.buffers(), self._before, strict=True):
            buffer.copy_(before)
        finding = _first(self._steps[-1:])
        self._left_out += 1
        if self._in_a_row < _MOST_IN_A_ROW:
            self._steps.pop()
        what = "the loss is not finite in another process" if finding is None else _described(finding)
        rank_zero_only(self.console.print)(
            f"note: {what}; this optimiser step is left out (batches left out so far: {self._left_out})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _look_at_terms(self, trainer: L.Trainer) -> None:
        """Raise UserError where a term since the last look is not finite, in any process."""
        finding = _of_all_processes(trainer, _first(self._steps))
        self._steps = []
        if finding is None:
            return
        path = self.out / NOT_FINITE_NAME
        if trainer.is_global_zero:
            write_whole(path, json.dumps(asdict(finding), indent=1))
        raise UserError(
            f"training stopped: {_described(finding)}; the numbers of the batch's images are in {str(path)!r}, and "
            f"the last checkpoint is kept. {self._advice()}"
        )

    def _look_at_weights(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise UserError where a weight is not finite or beyond all measure, in any process."""
        bad = [(name, value) for name, value in _diverged(pl_module).items() if name not in self._constant]
        found = None
        if bad:
            name, value = bad[0]
            found = Finding(name, value, trainer.global_step, trainer.current_epoch + 1, [])
        found = _of_all_processes(trainer, found)
        if found is not None:
            raise UserError(
                f"training stopped: the weight {found.term!r} has become {found.value} by step {found.step} "
                f"(epoch {found.epoch}); the last checkpoint is kept. {self._advice()}"
            )

    def _advice(self) -> str:
        if self.skips:
            return f"{self._left_out} batches were left out; a lower optim.lr or optim.clip_grad may help"
        return "A lower optim.lr or optim.clip_grad may help, or --engine.on-nan skip, which leaves such steps out"


def _described(finding: Finding) -> str:
    return f"the term {finding.term!r} is {finding.value} in step {finding.step} (epoch {finding.epoch})"


def _first(steps: list[tuple[int, int, dict[str, Tensor], Tensor]]) -> Finding | None:
    """Return the first term that is not finite, in one transfer from the device; a method's before their sum."""
    every = [(step, name) for step in steps for name in sorted(step[2], key=lambda name: name == "loss")]
    if not every:
        return None
    values = torch.stack([terms[name].float() for (_, _, terms, _), name in every])
    bad = (~torch.isfinite(values)).nonzero().flatten().tolist()
    if not bad:
        return None
    (step, epoch, _, index), name = every[bad[0]]
    return Finding(name, str(values[bad[0]].item()), step, epoch, index.tolist())


@torch.no_grad()
def _diverged(module: nn.Module) -> dict[str, str]:
    """Return the largest value of each weight and buffer that is not finite or too large, in one transfer."""
    tensors = {
        name: tensor.to_local() if isinstance(tensor, DTensor) else tensor
        for name, tensor in chain(module.named_parameters(), module.named_buffers())
        if tensor.is_floating_point() and tensor.numel()
    }
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    if not tensors:
        return {}
    largest = torch.stack([torch.linalg.vector_norm(tensor.float(), torch.inf) for tensor in tensors.values()])
    return {name: f"{size:.3g}" for name, size in zip(tensors, largest.tolist(), strict=True) if not size <= _LARGEST}


def _of_all_processes(trainer: L.Trainer, finding: Finding | None) -> Finding | None:
    """Return the first finding over all processes."""
    if trainer.world_size == 1:
        return finding
    if not trainer.strategy.reduce_boolean_decision(finding is not None, all=False):
        return None
    findings: list[Finding | None] = [None] * trainer.world_size
    dist.all_gather_object(findings, finding)
    return min((one for one in findings if one is not None), key=lambda one: one.step)
