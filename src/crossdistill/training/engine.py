"""Lightning's Trainer, assembled from the config."""

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from crossdistill.config import RunConfig
from crossdistill.training.callbacks import LAST, RunProgress, Speed, StopOnSignal

_PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


def make_trainer(config: RunConfig, out: Path, console: Console, title: str) -> L.Trainer:
    """Make the Trainer of a run that writes into `out`."""
    quiet_lightning()
    engine = config.engine
    logs = out / "logs"
    # Lightning's CSV logger deletes what its folder holds, so a resumed run logs into the next one.
    attempt = len(list(logs.glob("[0-9]*")))
    checkpoints = out / "checkpoints"
    common: dict[str, Any] = dict(dirpath=checkpoints, enable_version_counter=False, auto_insert_metric_name=False)
    return L.Trainer(
        accelerator=engine.accelerator,
        devices=engine.devices,
        num_nodes=engine.nodes,
        strategy="auto" if engine.devices == 1 and engine.nodes == 1 else "ddp",
        precision=_PRECISION[engine.precision],
        max_epochs=config.epochs,
        accumulate_grad_batches=engine.accumulate,
        gradient_clip_val=config.optim.clip_grad,
        sync_batchnorm=engine.sync_batchnorm,
        logger=[CSVLogger(out, name="logs", version=str(attempt)), TensorBoardLogger(out, name="logs", version="tb")],
        callbacks=[
            Speed(engine.log_every),
            RunProgress(console, title),
            StopOnSignal(checkpoints),
            ModelCheckpoint(**common, filename="best", monitor="val/top1", mode="max"),
            ModelCheckpoint(**common, filename=LAST.removesuffix(".ckpt"), save_on_train_epoch_end=True),
        ],
        log_every_n_steps=engine.log_every,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=out,
    )


def is_first_process() -> bool:
    """Say whether this process is the one that writes, before and after Lightning runs."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]


def quiet_lightning() -> None:
    """Keep Lightning's banners and tips out of the way of what the run has to say."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
