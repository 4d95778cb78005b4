"""Lightning's Trainer, made from the settings."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from rich.console import Console

from crossdistill.config import EngineConfig, RunConfig
from crossdistill.data import ImageData
from crossdistill.errors import UserError, first_line
from crossdistill.tasks import KNN, task_class
from crossdistill.training.callbacks import BestCheckpoint, StopOnSignal
from crossdistill.training.checkpoints import BEST, CHECKPOINTS, LAST, RunCheckpoints
from crossdistill.training.embedding_scores import EmbeddingScorer
from crossdistill.training.finite import FiniteCheck
from crossdistill.training.peak_memory import PeakMemory
from crossdistill.training.run_log import RunProgress, StepLog

_QUIET = (
    "`srun` command is available",
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


def make_trainer(
    config: RunConfig, out: Path, console: Console, title: str, identity: str, probed: ImageData | None
) -> tuple[L.Trainer, StepLog, PeakMemory]:
    """Make the Trainer of a run that writes into `out`, and the callbacks that log its steps and its memory.

    Its checkpoints carry the `identity` of the run; `probed` are images that score the embedding. Raises UserError for
    a machine without the devices or the precision asked for.
    """
    engine = config.engine
    quiet_lightning()
    _check_processes(engine)
    log, memory = StepLog(engine.log_every), PeakMemory()
    # The check is first: before a log row restarts, and before a signal's checkpoint.
    finite = FiniteCheck(out, engine.log_every, engine.on_nan, console)
    try:
        trainer = L.Trainer(
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.nodes,
            strategy=_strategy(engine),
            precision=_PRECISION[engine.precision],
            max_epochs=config.epochs,
            accumulate_grad_batches=engine.accumulate,
            gradient_clip_val=config.optim.clip_grad,
            logger=_loggers(out),
            callbacks=[
                # Before the callbacks that write checkpoints.
                *([] if probed is None else [EmbeddingScorer(config, probed)]),
                finite,
                log,
                memory,
                RunProgress(console, title, log),
                *_checkpointing(out / CHECKPOINTS, config),
            ],
            plugins=[RunCheckpoints(identity)],
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
    return trainer, log, memory


def _loggers(out: Path) -> list[Logger]:
    # Lightning's CSV logger deletes what its folder holds, so a resumed run logs into the next one.
    attempt = len(list((out / "logs").glob("[0-9]*")))
    return [CSVLogger(out, name="logs", version=str(attempt)), TensorBoardLogger(out, name="logs", version="tb")]


def _checkpointing(folder: Path, config: RunConfig) -> list[L.Callback]:
    """Make the callbacks that write checkpoints: on a signal, the best one, and the last one."""
    task = task_class(config.loader.labels)
    chosen: dict[str, Any] = dict(monitor=task.monitor, mode=task.mode)
    if config.probe_data is not None:
        chosen = dict(monitor=KNN, mode="max", every=config.probe_every or 1)
    common: dict[str, Any] = dict(dirpath=folder, enable_version_counter=False, auto_insert_metric_name=False)
    best, last = (name.removesuffix(".ckpt") for name in (BEST, LAST))
    return [
        StopOnSignal(folder, config.engine.log_every),
        BestCheckpoint(**common, filename=best, **chosen),
        BestCheckpoint(**common, filename=last, save_on_train_epoch_end=True),
    ]


def _check_processes(engine: EngineConfig) -> None:
    """Raise UserError where torchrun has started another number of processes than the settings state."""
    started, expected = int(os.environ.get("WORLD_SIZE", "1")), engine.devices * engine.nodes
    if TorchElasticEnvironment.detect() and engine.devices != -1 and started != expected:
        raise UserError(
            f"torchrun started {started} processes, but engine.devices {engine.devices} x engine.nodes {engine.nodes} "
            f"is {expected}: give --engine.devices {started // engine.nodes}"
        )


def _strategy(engine: EngineConfig) -> Any:
    if engine.devices == 1 and engine.nodes == 1:
        return "auto"
    if engine.strategy == "ddp":
        return "ddp"
    devices = engine.devices if engine.devices != -1 else max(1, torch.cuda.device_count())
    world = int(os.environ.get("WORLD_SIZE", "0")) or engine.nodes * devices
    return ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)


def set_threads(engine: EngineConfig) -> None:
    """Set the number of torch's CPU threads."""
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)


def local_rank() -> int:
    """Return the number of this process on its machine, outside a Trainer."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().local_rank()
    return LightningEnvironment().local_rank()


def choose_device(engine: EngineConfig) -> torch.device:
    """Choose the device of this process, outside a Trainer."""
    if engine.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_rank())
    return torch.device("cpu")


def is_first_process() -> bool:
    """Return whether this process is the one that writes, before and after Lightning runs."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def quiet_lightning() -> None:
    """Suppress Lightning's banners and tips."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _QUIET:
        warnings.filterwarnings("ignore", message=f".*{message}.*")
