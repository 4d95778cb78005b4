"""One run, from its settings to a finished folder: prepare, train, finish."""

import gc
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from rich.console import Console
from torch.utils.data import Dataset

from crossdistill.cache import TeacherCache
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.data.loaders import WithTeacher
from crossdistill.data.mixed import labelled_part
from crossdistill.data.split_list import read_split_list
from crossdistill.distiller import Distiller
from crossdistill.evaluation.cost import count_parameters
from crossdistill.training.announce import announce, label_of
from crossdistill.training.cached import HeldOutOutputs, prepare_cache
from crossdistill.training.checks import check_settings
from crossdistill.training.datamodule import DataModule
from crossdistill.training.embedding_scores import read_probe_data
from crossdistill.training.engine import make_trainer, set_threads
from crossdistill.training.finish import finish_run
from crossdistill.training.inputs import (
    check_counts,
    check_decoding,
    decide,
    digests,
    make_teacher_views,
    make_views,
    own_size,
    report_data,
)
from crossdistill.training.models import build_models
from crossdistill.training.module import DistillModule
from crossdistill.training.resume import check_resumed, read_checkpoint
from crossdistill.training.run import Run
from crossdistill.training.run_folder import (
    check_folder,
    check_space,
    default_out,
    identity_of,
    read_config,
    start_folder,
)
from crossdistill.training.run_lock import RunLock
from crossdistill.training.teacher_report import report_teachers


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
        run = prepare(config, console or Console(stderr=True, emoji=False), lock, resume=resume, data=data, root=root)
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
    if data is None:
        data = _load_data(config, out, console, resume=resume)
    config, choice = decide(config, choice, data)
    check_decoding(config, data)
    probed = read_probe_data(config, data)
    inputs = digests(config, data, None if config.probe_data is None else probed)
    identity = identity_of(config, inputs)
    title = f"{label_of(config)} {config.student} s{config.seed}"
    trainer, log, memory = make_trainer(config, out, console, title, identity, probed)
    if resume:
        check_resumed(config, inputs, out, data, trainer.world_size)
    check_counts(config, data, trainer.world_size)
    distiller = build_models(config, choice, data)
    checkpoint = read_checkpoint(out, identity, distiller, console) if resume else None
    check_space(out, count_parameters(distiller))
    _report(config, data, distiller, trainer, console)
    train, val, cache = _views(config, data, distiller, trainer.strategy.root_device, console)
    start_folder(config, inputs, out, trainer.world_size, resume=resume, root=root, data=data, lock=lock)
    module = _module(config, distiller)
    images = DataModule(train, val, config.loader, seed=config.seed, labelled=_labelled(config, data))
    return Run(
        config=config,
        out=out,
        console=console,
        data=data,
        distiller=distiller,
        trainer=trainer,
        log=log,
        memory=memory,
        module=module,
        datamodule=images,
        cache=cache,
        identity=identity,
        checkpoint=checkpoint,
        probed=probed,
    )


def _report(config: RunConfig, data: ImageData, distiller: Distiller, trainer: L.Trainer, console: Console) -> None:
    announce(config, data, distiller, trainer.world_size, console)
    if trainer.is_global_zero:
        report_teachers(config, data, distiller, trainer.strategy.root_device, console)


def _labelled(config: RunConfig, data: ImageData) -> int | None:
    return None if config.loader.unlabelled is None else len(labelled_part(data.train))


def _load_data(config: RunConfig, out: Path, console: Console, *, resume: bool) -> ImageData:
    # The list of the run; for other data the settings are refused later.
    same = resume and Path(read_config(out).data).resolve() == Path(config.data).resolve()
    data = load_data(config.data, config.loader, read_split_list(out) if same else None)
    report_data(data, console)
    return data


def _views(
    config: RunConfig, data: ImageData, distiller: Distiller, device: torch.device, console: Console
) -> tuple[Dataset[Any], Dataset[Any], TeacherCache | None]:
    """Make training and held-out views; with a cache they bring the teacher's outputs, and the teacher is released."""
    loader, augment, student, teacher = config.loader, config.augment, distiller.student, distiller.teacher
    size = own_size(augment, teacher)
    stored = config.cached and teacher is not None
    train, val = make_views(loader, augment, config.seed, data, student, device, size, stored=stored)
    if not config.cached or teacher is None:
        return train, val, None
    seen = (train, val) if size is None else make_teacher_views(loader, augment, data, student, size)
    cache = prepare_cache(config, data.train, seen[0], distiller, device, console)
    if not data.labelled:
        reads, precision = distiller.needs.teacher, config.engine.precision
        val = WithTeacher(val, HeldOutOutputs(teacher, seen[1], loader.batch_size, reads, precision))
    distiller.release_teacher()
    gc.collect()
    return WithTeacher(train, cache), val, cache


def _module(config: RunConfig, distiller: Distiller) -> DistillModule:
    if config.engine.channels_last is True:
        distiller.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.engine.compile:
        distiller.compile()
    return DistillModule(distiller, config.optim, config.engine, config.augment, epochs=config.epochs, seed=config.seed)
