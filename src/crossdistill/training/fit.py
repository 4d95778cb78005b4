"""One run, from its settings to a finished folder: prepare, train, finish."""

import gc
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from crossdistill.backbones import Backbone
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.data.loaders import WithTeacher
from crossdistill.distiller import Distiller
from crossdistill.errors import UserError
from crossdistill.evaluation.cost import count_parameters
from crossdistill.training.cached import prepare_cache
from crossdistill.training.checkpoints import BEFORE, BEST, CHECKPOINTS, LAST, checkpoint_problem, find_checkpoint
from crossdistill.training.datamodule import DataModule
from crossdistill.training.engine import make_trainer, set_threads
from crossdistill.training.finish import finish_run
from crossdistill.training.inputs import check_counts, decide, digests, make_views
from crossdistill.training.models import build_models, check_settings, report_teacher_accuracy
from crossdistill.training.module import DistillModule
from crossdistill.training.run import Run
from crossdistill.training.run_folder import (
    check_folder,
    check_global_batch,
    check_inputs,
    check_space,
    check_unchanged,
    default_out,
    identity_of,
    read_continued,
    start_folder,
)
from crossdistill.training.run_lock import RunLock


def fit(
    config: RunConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    data: ImageData | None = None,
    root: Path | None = None,
) -> Path:
    """Train a student by the settings, and return the folder of the finished run.

    Input errors are reported before training; until then nothing is written into the run's folder. `data` is the data
    set where it is loaded already; paths inside `root` are stored relative to the run. Raises UserError for bad input,
    and `Interrupted` after a signal (with a checkpoint to `resume` from).
    """
    lock = RunLock()
    try:
        run = prepare(config, console or Console(stderr=True), lock, resume=resume, data=data, root=root)
        run.trainer.fit(run.module, run.datamodule, ckpt_path=run.checkpoint, weights_only=True)
        if run.trainer.is_global_zero:
            finish_run(run)
    finally:
        lock.release()
    return run.out


def prepare(
    config: RunConfig,
    console: Console,
    lock: RunLock,
    *,
    resume: bool = False,
    data: ImageData | None = None,
    root: Path | None = None,
) -> Run:
    """Check and build everything that a run needs, then write its settings into its folder. Raises UserError.

    `lock` is taken as soon as the folder exists.
    """
    choice = check_settings(config)
    out = Path(config.out) if config.out else default_out(config)
    check_folder(out, resume=resume)
    if resume:
        lock.acquire(out)
    set_threads(config.engine)
    data = data or load_data(config.data, config.loader)
    config, choice = decide(config, choice, data)
    inputs = digests(config, data)
    identity = identity_of(config, inputs)
    title = f"{_label(config)} {config.student} s{config.seed}"
    trainer, log = make_trainer(config, out, console, title, identity)
    if resume:
        _check_resumed(config, inputs, out, data, trainer)
    check_counts(config, data, trainer.world_size)
    distiller = build_models(config, choice, data)
    checkpoint = _checkpoint(out, identity, distiller, console) if resume else None
    check_space(out, count_parameters(distiller))
    _announce(config, data, distiller.student, console)
    device = trainer.strategy.root_device
    if trainer.is_global_zero:
        report_teacher_accuracy(config, data, distiller, device, console)
    train, val = make_views(config.loader, config.augment, config.seed, data, distiller.student, device)
    cache = None
    if config.cached and distiller.teacher is not None:
        cache = prepare_cache(config, data.train, train, distiller, device, console)
        train = WithTeacher(train, cache)
        distiller.release_teacher()
        gc.collect()
    start_folder(config, inputs, out, trainer.world_size, resume=resume, root=root, lock=lock)
    module = _module(config, distiller)
    datamodule = DataModule(train, val, config.loader, seed=config.seed)
    return Run(config, out, console, data, distiller, trainer, log, module, datamodule, cache, identity, checkpoint)


def _module(config: RunConfig, distiller: Distiller) -> DistillModule:
    if config.engine.channels_last is True:
        distiller.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.engine.compile:
        distiller.compile()
    return DistillModule(distiller, config.optim, config.engine, config.augment, epochs=config.epochs, seed=config.seed)


def _check_resumed(config: RunConfig, inputs: dict[str, str], out: Path, data: ImageData, trainer: L.Trainer) -> None:
    """Check that a run can be continued with these settings. Raises UserError."""
    before = read_continued(out, config)
    before, _ = decide(before, check_settings(before), data)
    check_unchanged(before, config, other_devices=True)
    check_inputs(out, inputs)
    if any((out / CHECKPOINTS / name).exists() for name in (LAST, BEFORE)):
        check_global_batch(out, before.loader.batch_size, config.loader.batch_size, trainer.world_size)


def _checkpoint(out: Path, identity: str, distiller: Distiller, console: Console) -> Path | None:
    """Return the checkpoint that a run continues from; None where it has none yet. Raises UserError for damage."""
    trained = {f"distiller.{name}": value for name, value in distiller.state_dict().items()}
    checkpoint = find_checkpoint(out, identity, trained, console)
    best = out / CHECKPOINTS / BEST
    if checkpoint is not None and best.exists() and (problem := checkpoint_problem(best, identity)):
        raise UserError(f"{problem}: delete the folder {str(best.parent)!r} to train the run from its start")
    return checkpoint


def _label(config: RunConfig) -> str:
    return "teacher" if config.role == "teacher" else config.method


@rank_zero_only
def _announce(config: RunConfig, data: ImageData, student: Backbone, console: Console) -> None:
    """Print which model is trained on which data."""
    if config.loader.batch_size > len(data.train):
        console.print(f"note: a batch of {config.loader.batch_size} is more than the {len(data.train)} training images")
    console.print(
        f"{_label(config)}: {student.spec.name} ({count_parameters(student) / 1e6:.2f} M) on {data.name}, "
        f"{len(data.train)} training, {len(data.val)} validation and {len(data.test)} test images at "
        f"{student.img_size} px",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
