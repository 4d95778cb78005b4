"""Lightning's Trainer, assembled from the config."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from rich.console import Console

from crossdistill.config import EngineConfig, RunConfig
from crossdistill.errors import UserError, first_line
from crossdistill.training.callbacks import LAST, BestCheckpoint, RunProgress, StepLog, StopOnSignal

_QUIET = (
    "many workers",
    "LeafSpec",
    "number of training batches",
    "not resumable",
    "not empty",
    "in eval mode",
    "sync_dist=True",
)
_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


def make_trainer(config: RunConfig, out: Path, console: Console, title: str) -> tuple[L.Trainer, StepLog]:
    """Make the Trainer of a run that writes into `out`, and the callback that logs its steps.

    Raises UserError for a machine without the devices asked for.
    """
    quiet_lightning()
    engine = config.engine
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ and engine.devices != -1 and started != engine.devices * engine.nodes:
        raise UserError(
            f"torchrun started {started} processes, but engine.devices {engine.devices} x engine.nodes {engine.nodes} "
            f"is {engine.devices * engine.nodes}: give --engine.devices {started // engine.nodes}"
        )
    logs = out / "logs"
    # Lightning's CSV logger deletes what its folder holds, so a resumed run logs into the next one.
    attempt = len(list(logs.glob("[0-9]*")))
    checkpoints = out / "checkpoints"
    log = StepLog(engine.log_every)
    common: dict[str, Any] = dict(dirpath=checkpoints, enable_version_counter=False, auto_insert_metric_name=False)
    try:
        trainer = L.Trainer(
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.nodes,
            strategy=_strategy(config),
            precision=_PRECISION[engine.precision],
            max_epochs=config.epochs,
            accumulate_grad_batches=engine.accumulate,
            gradient_clip_val=config.optim.clip_grad,
            logger=[
                CSVLogger(out, name="logs", version=str(attempt)),
                TensorBoardLogger(out, name="logs", version="tb"),
            ],
            callbacks=[
                log,
                RunProgress(console, title, log),
                StopOnSignal(checkpoints, engine.log_every),
                BestCheckpoint(**common, filename="best", monitor="val/top1", mode="max"),
                BestCheckpoint(**common, filename=LAST.removesuffix(".ckpt"), save_on_train_epoch_end=True),
            ],
            profiler=log.wait,
            log_every_n_steps=engine.log_every,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=out,
        )
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"engine: {first_line(error)}") from error
    if trainer.strategy.root_device.type == "cpu" and (engine.precision == "16" or engine.sync_batchnorm):
        raise UserError("engine.precision 16 and engine.sync_batchnorm need a GPU; on the CPU use bf16 or 32")
    return trainer, log


def _strategy(config: RunConfig) -> Any:
    engine = config.engine
    if engine.devices == 1 and engine.nodes == 1:
        return "auto"
    if engine.strategy == "ddp":
        return "ddp"
    world = int(os.environ.get("WORLD_SIZE", "0")) or engine.nodes * _devices(engine)
    return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)


def _devices(engine: EngineConfig) -> int:
    if engine.devices != -1:
        return engine.devices
    return max(1, torch.cuda.device_count())


def is_first_process() -> bool:
    """Say whether this process is the one that writes, before and after Lightning runs."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def quiet_lightning() -> None:
    """Keep Lightning's banners and tips out of the way of what the run has to say."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
