"""A run between its preparation and its end."""

from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as L
from rich.console import Console

from crossdistill.cache import TeacherCache
from crossdistill.config import RunConfig
from crossdistill.data import ImageData
from crossdistill.distiller import Distiller
from crossdistill.training.datamodule import DataModule
from crossdistill.training.module import DistillModule
from crossdistill.training.peak_memory import PeakMemory
from crossdistill.training.run_log import StepLog


@dataclass(frozen=True)
class Run:
    """A run that is ready to train. All its settings are decided."""

    config: RunConfig
    out: Path
    console: Console
    data: ImageData
    distiller: Distiller
    trainer: L.Trainer
    log: StepLog
    memory: PeakMemory
    module: DistillModule
    datamodule: DataModule
    cache: TeacherCache | None
    identity: str
    """A digest of what the run computes, which its checkpoints carry."""
    checkpoint: Path | None
    """The checkpoint that an interrupted run continues from."""
    probed: ImageData | None = None
    """The labelled images that score the embedding; None where the run does not ask for it."""
