"""Stopping on a signal, and checkpoints that can be moved."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import ModelCheckpoint

from crossdistill.training.checkpoints import LAST


class Interrupted(BaseException):
    """The run was asked to stop; `signum` is the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class StopOnSignal(L.Callback):
    """On SIGINT or SIGTERM: finish the step, save `last.ckpt`, raise `Interrupted`. A second signal stops at once.

    Several processes agree on the step every `every` steps, so that all save together.
    """

    def __init__(self, checkpoints: Path, every: int) -> None:
        self.checkpoints = checkpoints
        self.every = every
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise Interrupted(signum)
        self._received = signum

    def _agreed(self, trainer: L.Trainer) -> int | None:
        if trainer.world_size == 1:
            return self._received
        stop = trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)
        return (self._received or signal.SIGTERM) if stop else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the handlers of the two signals, after Lightning has set its own."""
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the handlers."""
        self._restore()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop between two steps; after the last one of an epoch, validate it first."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = trainer.world_size == 1 or trainer.global_step % self.every == 0
        if stepped and due and not trainer.is_last_batch and (signum := self._agreed(trainer)) is not None:
            trainer.save_checkpoint(self.checkpoints / LAST)
            raise Interrupted(signum)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop between two epochs; the finished one has its checkpoint."""
        if (signum := self._agreed(trainer)) is not None:
            raise Interrupted(signum)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the handlers; stop before the test where the signal came in the last epoch."""
        self._restore()
        if (signum := self._agreed(trainer)) is not None:
            raise Interrupted(signum)


def every_and_last(trainer: L.Trainer, every: int) -> bool:
    """Return whether the current epoch is one of every `every` epochs, or the last one."""
    epoch = trainer.current_epoch + 1
    return epoch % every == 0 or epoch == trainer.max_epochs


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint callback, which keeps its best score after the run's folder was moved.

    What it monitors is measured every `every` epochs, and in the last one.
    """

    def __init__(self, every: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.every = every

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save in an epoch that was measured; Lightning still has the value of the one before in the others."""
        if every_and_last(trainer, self.every):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save in an epoch that was measured."""
        if every_and_last(trainer, self.every):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a stored state as one of this folder."""
        here = str(self.dirpath)
        moved = {
            key: value.replace(state_dict["dirpath"], here) if isinstance(value, str) else value
            for key, value in state_dict.items()
        }
        moved["best_k_models"] = {
            path.replace(state_dict["dirpath"], here): score for path, score in state_dict["best_k_models"].items()
        }
        super().load_state_dict(moved)
