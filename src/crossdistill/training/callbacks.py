"""What watches a run: speed, progress with the time that remains, and the wish to stop."""

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.profilers import Profiler
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

LAST = "last.ckpt"
_LONG_WAIT = 10.0
"""Percent of the time waited for data from which that is said."""


class Interrupted(BaseException):
    """The run was asked to stop; `signum` says by which signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class StopOnSignal(L.Callback):
    """On SIGINT or SIGTERM: finish the step, save `last.ckpt`, raise `Interrupted`. A second signal stops at once.

    Over several processes they agree on the step every `every` steps, so that all save together.
    """

    def __init__(self, checkpoints: Path, every: int) -> None:
        self.checkpoints = checkpoints
        self.every = every
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            raise Interrupted(signum)
        self._asked = signum

    def _agreed(self, trainer: L.Trainer) -> int | None:
        if trainer.world_size == 1:
            return self._asked
        stop = trainer.strategy.reduce_boolean_decision(self._asked is not None, all=False)
        return (self._asked or signal.SIGTERM) if stop else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the two signals; Lightning has taken its own by now."""
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two steps; after the last one of an epoch, let it be validated first."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = trainer.world_size == 1 or trainer.global_step % self.every == 0
        if stepped and due and not trainer.is_last_batch and (signum := self._agreed(trainer)) is not None:
            trainer.save_checkpoint(self.checkpoints / LAST)
            raise Interrupted(signum)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop between two epochs; the checkpoint of the finished one is there."""
        if (signum := self._agreed(trainer)) is not None:
            raise Interrupted(signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop before the test where the wish came in the last epoch; give the signals back."""
        self._give_back()
        if (signum := self._agreed(trainer)) is not None:
            raise Interrupted(signum)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which also knows its best score again after the run's folder was moved."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a stored state as one of this folder."""
        here = str(self.dirpath)
        moved = {
            key: value.replace(state_dict["dirpath"], here) if isinstance(value, str) else value
            for key, value in state_dict.items()
        }
        moved["best_k_models"] = {
            path.replace(state_dict["dirpath"], here): score for path, score in state_dict["best_k_models"].items()
        }
        super().load_state_dict(moved)


class DataWait(Profiler):
    """Add up the seconds that Lightning waits for training batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since = 0.0

    def start(self, action_name: str) -> None:
        """Start the clock at the right moment."""
        if action_name.endswith("train_dataloader_next"):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Stop it."""
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._since


class StepLog(L.Callback):
    """Log each loss term (the mean since the last row, over all devices), the learning rate, speed, and waiting.

    Speed is in images per second over all devices; waiting is the percentage of the time in which the
    training process asked for the next batch and had not got it.
    Sums stay on the device between two rows, so logging does not make it wait.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.wait = DataWait()
        self.latest: dict[str, float] = {}
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
        """Keep the time already spent."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting after a resume."""
        self._spent = state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()
        self._restart()

    def _restart(self) -> None:
        self._sums, self._batches, self._images = {}, 0, 0
        self._since, self.wait.seconds = time.perf_counter(), 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the time of validation out."""
        self._restart()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add one batch up; write a row where one is due."""
        for name, value in outputs["terms"].items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._batches += 1
        self._images += len(batch[0]) * trainer.world_size
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not (trainer.is_last_batch or (stepped and trainer.global_step % self.every == 0)):
            return
        means = torch.stack([value.float() for value in self._sums.values()]) / self._batches
        over_all = trainer.strategy.reduce(means, reduce_op="mean")
        assert isinstance(over_all, Tensor)
        row = {f"train/{name}": value for name, value in zip(self._sums, over_all.tolist(), strict=True)}
        seconds = max(time.perf_counter() - self._since, 1e-9)
        row["train/images_per_second"] = self._images / seconds
        row["train/wait_percent"] = 100 * self.wait.seconds / seconds
        row["train/lr"] = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=max(trainer.global_step - 1, 0))
        self.latest = row
        self._restart()


class RunProgress(L.Callback):
    """One bar for the whole run with the time that remains; one line per epoch where there is no terminal."""

    def __init__(self, console: Console, title: str, steps: StepLog) -> None:
        self.console = console
        self.steps = steps
        self.title = title
        self._bar: Progress | None = None
        self._task: Any = None
        self._start = 0.0
        self._first_epoch = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        self._start, self._first_epoch = time.perf_counter(), trainer.current_epoch
        if not trainer.is_global_zero or not self.console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=True,
        )
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        done = int(trainer.num_training_batches) * trainer.current_epoch
        self._task = self._bar.add_task(self.title, total=total, completed=done)
        self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how far the run is."""
        if not trainer.is_global_zero:
            return
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        seen = {**self.steps.latest, **{name: float(value) for name, value in trainer.callback_metrics.items()}}
        state = f"{self.title}  epoch {epoch}/{epochs}"
        if "train/loss" in seen:
            state += f"  loss {seen['train/loss']:.3f}"
        if "val/top1" in seen:
            state += f"  val {seen['val/top1']:.2f}%"
        if (waited := seen.get("train/wait_percent", 0)) > _LONG_WAIT:
            state += f"  waiting for data {waited:.0f}% (more --loader.workers?)"
        if self._bar is not None:
            self._bar.update(self._task, description=state)
        elif epoch == epochs or epoch % max(1, epochs // 10) == 0:
            spent = time.perf_counter() - self._start
            left = spent / (epoch - self._first_epoch) * (epochs - epoch)
            self.console.print(f"{state}  {spent:.0f} s, {left:.0f} s left", highlight=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the terminal is left in order."""
        self._close()
