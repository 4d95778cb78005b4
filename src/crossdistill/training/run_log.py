"""What a run logs and shows while it trains."""

import time
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.profilers import Profiler
from rich.console import Console
from torch import Tensor

from crossdistill.distiller import Distiller
from crossdistill.progress import ProgressReport
from crossdistill.tasks import Classification, NoLabels
from crossdistill.training.embedding_scores import EmbeddingScorer
from crossdistill.types import Batch

_LONG_WAIT = 10.0
"""Percentage of waiting for data from which it is reported."""


class DataWait(Profiler):
    """Add up the seconds that Lightning waits for training batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since = 0.0

    def start(self, action_name: str) -> None:
        """Start the clock where Lightning asks for a batch."""
        if action_name.endswith("train_dataloader_next"):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Stop the clock."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._since


def row_is_due(trainer: L.Trainer, batch_idx: int, every: int) -> bool:
    """Return whether a log row follows this batch: every `every` optimiser steps, and at the end of an epoch."""
    stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
    return bool(trainer.is_last_batch or (stepped and trainer.global_step % every == 0))


class StepLog(L.Callback):
    """Log each loss term (mean since the last row, over all devices), factors, learning rate, speed, and waiting.

    Speed is in images per second over all devices; waiting is the percentage of the time between the request for a
    batch and its arrival. Sums stay on the device between two rows, so that logging does not wait for it.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.wait = DataWait()
        self._row: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._batches = self._images = 0
        self._since = 0.0
        self._spent = 0.0
        self._start: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far, over all attempts."""
        return self._spent + (0.0 if self._start is None else time.perf_counter() - self._start)

    def state_dict(self) -> dict[str, Any]:
        """Store the time spent."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue to count after a resume."""
        self._spent = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()
        self._restart()

    def _restart(self) -> None:
        self._sums, self._batches, self._images = {}, 0, 0
        self._since, self.wait.seconds = time.perf_counter(), 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out the time of validation."""
        self._restart()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Add one batch; write a row where one is due."""
        for name, value in outputs["terms"].items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._batches += 1
        self._images += len(batch.images) * trainer.world_size
        if not row_is_due(trainer, batch_idx, self.every):
            return
        means = torch.stack([value.float() for value in self._sums.values()]) / self._batches
        over_all = trainer.strategy.reduce(means, reduce_op="mean")
        assert isinstance(over_all, Tensor)
        row = {f"train/{name}": value for name, value in zip(self._sums, over_all.tolist(), strict=True)}
        row |= self._speed()
        assert isinstance(pl_module.distiller, Distiller)
        row |= {f"balance/{name}": factor for name, factor in pl_module.distiller.balance_factors().items()}
        row["train/lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=max(trainer.global_step - 1, 0))
        self._row = row
        self._restart()

    def _speed(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self._since, 1e-9)
        return {
            "train/images_per_second": self._images / seconds,
            "train/wait_percent": 100 * self.wait.seconds / seconds,
        }

    def latest(self) -> dict[str, float]:
        """Return the last row; before the first one, loss and speed of this device so far."""
        if self._row or not self._batches:
            return self._row
        return {"train/loss": float(self._sums["loss"]) / self._batches, **self._speed()}


class RunProgress(L.Callback):
    """Progress of the whole run. Lightning's own bars show one epoch, and nothing where there is no terminal."""

    def __init__(self, console: Console, title: str, steps: StepLog) -> None:
        self.console = console
        self.title = title
        self.steps = steps
        self._report: ProgressReport | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar."""
        if trainer.is_global_zero:
            batches = int(trainer.num_training_batches)
            done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            self._report = ProgressReport(self.console, self.title, batches * (trainer.max_epochs or 1), done)
            self._report.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Move the bar; without a terminal print a line where none was printed for a minute."""
        if self._report is not None:
            self._report.advance()
            if self._report.due:
                self._report.print_state(
                    self._state(trainer, trainer.current_epoch + 1, f"step {trainer.global_step}  ")
                )

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int, *args: Any
    ) -> None:
        """Without a terminal print a line where none was printed for a minute."""
        if self._report is not None and self._report.due:
            batches = sum(int(count) for count in trainer.num_val_batches)
            place = f"validation batch {batch_idx + 1}/{batches}  "
            self._report.print_state(self._state(trainer, trainer.current_epoch + 1, place))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show how far the run is."""
        if self._report is None:
            return
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        if self.console.is_terminal or self._report.due or epoch == epochs or epoch % max(1, epochs // 10) == 0:
            self._report.print_state(self._state(trainer, epoch))

    def _state(self, trainer: L.Trainer, epoch: int, place: str = "") -> str:
        seen = {**self.steps.latest(), **{name: float(value) for name, value in trainer.callback_metrics.items()}}
        state = f"{place}epoch {epoch}/{trainer.max_epochs}"
        if "train/loss" in seen:
            state += f"  loss {seen['train/loss']:.3f}  {seen['train/images_per_second']:.0f} images/s"
        if Classification.monitor in seen:
            state += f"  val {seen[Classification.monitor]:.2f}%"
        if NoLabels.monitor in seen:
            state += f"  distill_loss {seen[NoLabels.monitor]:.3f}"
        scorers = (one for one in trainer.callbacks if isinstance(one, EmbeddingScorer))  # type: ignore[attr-defined]
        state += "".join(scorer.state(epoch) for scorer in scorers)
        if (waited := seen.get("train/wait_percent", 0)) > _LONG_WAIT:
            state += f"  waiting for data {waited:.0f}% (more --loader.workers?)"
        return state

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove the bar."""
        if self._report is not None:
            self._report.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove the bar from the terminal."""
        if self._report is not None:
            self._report.close()
