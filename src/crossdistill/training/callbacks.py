"""What watches a run: speed, progress with the time that remains, and the wish to stop."""

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LAST = "last.ckpt"


class Interrupted(BaseException):
    """The run was asked to stop; `signum` says by which signal. A checkpoint has been saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class StopOnSignal(L.Callback):
    """On SIGINT or SIGTERM: finish the batch, save `last.ckpt`, raise `Interrupted`. A second signal stops at once."""

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            raise KeyboardInterrupt
        self._asked = signum

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the two signals."""
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop between two batches; after the last one of an epoch, let it be validated first."""
        if self._asked is not None and not trainer.is_last_batch:
            trainer.save_checkpoint(self.checkpoints / LAST)
            raise Interrupted(self._asked)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop between two epochs; the checkpoint of the finished one is there."""
        if self._asked is not None:
            raise Interrupted(self._asked)


class Speed(L.Callback):
    """Log images per second over all devices, and the learning rate."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._images = 0
        self._since = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the time of validation out."""
        self._images, self._since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the same steps as Lightning does."""
        self._images += len(batch[0]) * trainer.world_size
        if trainer.global_step % self.every == 0 or trainer.is_last_batch:
            now = time.perf_counter()
            rate = self._images / max(now - self._since, 1e-9)
            lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
            pl_module.log_dict({"train/images_per_second": rate, "train/lr": lr})
            self._images, self._since = 0, now


class RunProgress(L.Callback):
    """One bar for the whole run with the time that remains; one line per epoch where there is no terminal."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
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
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        state = f"{self.title}  epoch {epoch}/{epochs}"
        if "train/loss" in seen:
            state += f"  loss {seen['train/loss']:.3f}"
        if "val/top1" in seen:
            state += f"  val {seen['val/top1']:.2f}%"
        if self._bar is not None:
            self._bar.update(self._task, description=state)
        elif epoch == epochs or epoch % max(1, epochs // 10) == 0:
            spent = time.perf_counter() - self._start
            left = spent / (epoch - self._first_epoch) * (epochs - epoch)
            self.console.print(f"{state}  {spent:.0f} s, {left:.0f} s left", highlight=False)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
