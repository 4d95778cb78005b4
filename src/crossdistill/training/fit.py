"""One run, from its settings to a finished folder: prepare, train, finish."""

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from torch.utils.data import Dataset

from crossdistill.backbones import Backbone
from crossdistill.backbones.build import own_img_size
from crossdistill.backbones.checkpoint import read_weights
from crossdistill.cache import TeacherCache
from crossdistill.config import AugmentConfig, LoaderConfig, RunConfig
from crossdistill.config.resolve import resolve
from crossdistill.data import ImageData, load_data
from crossdistill.data.loaders import WithTeacher
from crossdistill.data.views import held_out_views, training_views
from crossdistill.distiller import Distiller
from crossdistill.errors import UserError
from crossdistill.evaluation.cost import count_parameters
from crossdistill.methods import choose_method, options_for
from crossdistill.training.cached import prepare_cache
from crossdistill.training.datamodule import DataModule
from crossdistill.training.engine import make_trainer, set_threads
from crossdistill.training.finish import finish_run
from crossdistill.training.models import build_models, check_settings, look_at_teachers
from crossdistill.training.module import DistillModule
from crossdistill.training.run_folder import (
    CHECKPOINTS,
    LAST,
    check_global_batch,
    check_space,
    check_unchanged,
    claim_folder,
    default_out,
    read_config,
    write_config,
)
from crossdistill.training.run_log import StepLog


@dataclass(frozen=True)
class Run:
    """A run that is ready to train. All its settings are decided."""

    config: RunConfig
    out: Path
    data: ImageData
    distiller: Distiller
    trainer: L.Trainer
    log: StepLog
    module: DistillModule
    datamodule: DataModule
    cache: TeacherCache | None
    checkpoint: Path | None
    """The checkpoint that an interrupted run continues from."""


def fit(
    config: RunConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    data: ImageData | None = None,
    root: Path | None = None,
) -> Path:
    """Train a student as the settings say, and return the folder of the finished run.

    Bad input is refused before the first step. `data` saves reading it again; checkpoints inside `root` are stored
    relative to the run. Raises UserError for bad input, `Interrupted` after a signal (with a checkpoint to `resume`
    from).
    """
    run = prepare(config, console or Console(stderr=True), resume=resume, data=data, root=root)
    run.trainer.fit(run.module, run.datamodule, ckpt_path=run.checkpoint, weights_only=True)
    if run.trainer.is_global_zero:
        finish_run(run)
    return run.out


def prepare(
    config: RunConfig,
    console: Console,
    *,
    resume: bool = False,
    data: ImageData | None = None,
    root: Path | None = None,
) -> Run:
    """Check and build everything that a run needs, and write its settings into its folder. Raises UserError."""
    check_settings(config)
    out = Path(config.out) if config.out else default_out(config)
    claim_folder(out, resume=resume)
    config, data = read_data(config, data)
    label = "teacher" if config.role == "teacher" else config.method
    trainer, log = make_trainer(config, out, console, f"{label} {config.student} s{config.seed}")
    checkpoint = _check_resumed(config, out, data, trainer) if resume else None
    distiller = build_models(config, data)
    check_space(out, count_parameters(distiller))
    _check_counts(data, config.loader.batch_size, config.augment.mixes, trainer.world_size)
    _announce(label, data, config.loader.batch_size, distiller.student, console)
    device = trainer.strategy.root_device
    if trainer.is_global_zero:
        look_at_teachers(config, data, distiller, device, console)
    write_config(config, out, trainer.world_size, root)
    train, val = make_views(config.loader, config.augment, config.seed, data, distiller.student, device)
    cache = None
    if config.cached and distiller.teacher is not None:
        cache = prepare_cache(config, data.train, train, distiller, device, console)
        train = WithTeacher(train, cache)
        distiller.release_teacher()
        gc.collect()
    if config.engine.channels_last is True:
        distiller.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.engine.compile:
        distiller.compile()
    module = DistillModule(
        distiller, config.optim, config.engine, config.augment, epochs=config.epochs, seed=config.seed
    )
    datamodule = DataModule(train, val, config.loader, seed=config.seed)
    return Run(config, out, data, distiller, trainer, log, module, datamodule, cache, checkpoint)


def read_data(config: RunConfig, data: ImageData | None = None) -> tuple[RunConfig, ImageData]:
    """Read the data of a run, and decide its settings. Raises UserError."""
    set_threads(config.engine)
    data = data or load_data(config.data, config.loader)
    options = choose_method(config.method, options_for(config.method, config.options)).plain
    for values in options.values():
        if "images" in values:
            values["images"] = values["images"] or len(data.train)
    return replace(resolve(config, data, own_img_size), options=options), data


def make_views(
    loader: LoaderConfig, augment: AugmentConfig, seed: int, data: ImageData, student: Backbone, device: torch.device
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Make the data sets of training and held-out views."""
    assert loader.resident is not None
    seed = seed if loader.views is None else loader.view_seed
    common: dict[str, Any] = dict(resident=loader.resident, device=device)
    train = training_views(data.train, augment, student.spec, student.img_size, seed=seed, **common)
    return train, held_out_views(data.val, augment, student.spec, student.img_size, **common)


def _check_resumed(config: RunConfig, out: Path, data: ImageData, trainer: L.Trainer) -> Path | None:
    """Check that a run can be continued, and return its last checkpoint if it has one. Raises UserError."""
    before, _ = read_data(read_config(out), data)
    check_unchanged(before, config, other_devices=True)
    last = out / CHECKPOINTS / LAST
    if not last.exists():
        return None
    check_global_batch(out, before.loader.batch_size, config.loader.batch_size, trainer.world_size)
    read_weights(last)
    return last


def _check_counts(data: ImageData, batch_size: int, mixes: bool, processes: int) -> None:
    """Raise UserError for splits that are too small for the processes or for mixing."""
    if min(len(data.val), len(data.test)) < processes:
        raise UserError(f"{len(data.val)} held-out images are fewer than the {processes} processes")
    if batch_size > len(data.train) and mixes and len(data.train) % 2:
        raise UserError(f"mixup and CutMix pair the images of a batch; the one batch of {len(data.train)} is odd")


def _announce(label: str, data: ImageData, batch_size: int, student: Backbone, console: Console) -> None:
    """Say what is about to be trained, on what."""
    say = rank_zero_only(console.print)
    if batch_size > len(data.train):
        say(f"note: a batch of {batch_size} is more than the {len(data.train)} training images")
    say(
        f"{label}: {student.spec.name} "
        f"({count_parameters(student) / 1e6:.2f} M) on {data.name}, {len(data.train)} images at {student.img_size} px, "
        f"{len(data.val)} held out, {len(data.test)} for the test",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
