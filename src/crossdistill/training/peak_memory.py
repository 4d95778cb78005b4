"""The most memory that a run has taken while it trained."""

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMemory(L.Callback):
    """Measure the peak of the first device's memory, or without a GPU that of this process, over all attempts.

    That of a process is read from Linux, which lets it be reset before a run; elsewhere it stays None. It includes the
    libraries, and not the workers of the loader.
    """

    def __init__(self) -> None:
        self._earlier: int | None = None
        self._device: torch.device | None = None

    @property
    def peak(self) -> int | None:
        """Bytes at most so far; None where they are not known."""
        known = [value for value in (self._earlier, self._now()) if value is not None]
        return max(known, default=None)

    def state_dict(self) -> dict[str, Any]:
        """Store the peak."""
        return {"bytes": self.peak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after a resume."""
        self._earlier = state_dict["bytes"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what was taken before the run."""
        device = pl_module.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._device = device
        elif device.type == "cpu" and _reset_process():
            self._device = device

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave out what follows: the export and the scores."""
        self._earlier, self._device = self.peak, None

    def _now(self) -> int | None:
        if self._device is None:
            return None
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _peak_of_process()


def _reset_process() -> bool:
    try:
        _RESET.write_text("5")  # see proc(5): sets VmHWM to the present size
    except OSError:
        return False
    return _peak_of_process() is not None


def _peak_of_process() -> int | None:
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else 1024 * int(found.group(1))
