"""The folder of a run: its settings and inputs, and the checks before it is written or continued."""

import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

import crossdistill
from crossdistill.config import RunConfig
from crossdistill.config.code import check_named_code, code_of
from crossdistill.config.files import EXECUTION, PATHS, complete_from_dict, flat, read_yaml, with_read_paths
from crossdistill.data import ImageData
from crossdistill.data.split_list import SPLIT_NAME, Changes, write_split_list
from crossdistill.data.trained import TRAINED_NAME, unlisted_marks, write_trained
from crossdistill.errors import UserError
from crossdistill.files import make_folder, write_whole
from crossdistill.report.records import CONFIG_NAME, ENVIRONMENT_NAME, Environment, read_environment
from crossdistill.training.checkpoints import run_identity
from crossdistill.training.run_lock import RunLock

# With other devices, where the batch over all of them stays the same.
_FREE_WITH_DEVICES = ("loader.batch_size", "engine.devices", "engine.nodes", "engine.strategy", "engine.shard_teacher")


def default_out(config: RunConfig) -> Path:
    """Name a run's folder by its data, models, method and seed."""
    teacher = "+".join(name or Path(checkpoint or "").name for name, checkpoint in config.teachers)
    data = Path(config.data).name if Path(config.data).exists() else config.data
    parts = [data, teacher, config.student, config.method, f"s{config.seed}"]
    return Path("runs") / "-".join(p.replace("/", "_").replace(":", "_") for p in parts if p)


@rank_zero_only
def check_folder(out: Path, *, resume: bool) -> None:
    """Raise UserError for a folder that holds another run, or cannot be written. Leaves nothing on the disk."""
    stored = out / CONFIG_NAME
    try:
        if stored.exists() and not resume:
            raise UserError(f"{str(out)!r} already holds a run: continue it with --resume, or choose another --out")
        if resume and not stored.exists():
            raise UserError(f"{str(out)!r} does not hold a run to resume")
    except OSError as error:
        raise UserError(f"cannot write to {str(out)!r}: {error.strerror or error}") from error
    check_writable(out)


def check_writable(folder: Path) -> None:
    """Raise UserError for a folder that cannot be written, or made. Leaves nothing on the disk."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise UserError(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def read_config(folder: Path) -> RunConfig:
    """Read the settings of a run, without its trust in code. Raises UserError where they are missing or damaged."""
    path = folder / CONFIG_NAME
    if not path.exists():
        raise UserError(f"{str(folder)!r} is not a run: {CONFIG_NAME} is missing")
    return replace(complete_from_dict(read_yaml(path), f"in {str(path)!r}: "), trust_code=False)


@rank_zero_only
def start_folder(
    config: RunConfig,
    inputs: dict[str, str],
    out: Path,
    processes: int,
    *,
    resume: bool,
    root: Path | None = None,
    data: ImageData | None = None,
    lock: RunLock | None = None,
) -> None:
    """Make the run's folder, and write what the run starts from: decided settings, versions, digests, files of splits.

    Paths inside `root` are written relative to the run, so that the whole folder can be moved; others are absolute.
    `lock` is taken before. Raises UserError where another run has taken the folder in the meantime.
    """
    check_folder(out, resume=resume)
    for folder in (out,) if root is None else (root, out):
        make_folder(folder)
    if lock is not None:
        lock.acquire(out)
        check_folder(out, resume=resume)
    settings = with_read_paths(replace(config, out=None), lambda path: _stored_path(path, out, root))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_whole(out / ENVIRONMENT_NAME, json.dumps(asdict(environment(processes, inputs)), indent=2))
    write_whole(out / CONFIG_NAME, text)
    if data is not None and not resume:
        if data.files is not None:
            write_whole(out / SPLIT_NAME, write_split_list(data.files))
        write_whole(out / TRAINED_NAME, write_trained(unlisted_marks(data.train, data.files)))


def _stored_path(path: str, out: Path, root: Path | None) -> str:
    absolute = Path(path).resolve()
    if root is None or not absolute.is_relative_to(root.resolve()):
        return str(absolute)
    relative = os.path.relpath(absolute, out.resolve())
    return relative if relative.startswith("../") else f"./{relative}"


def read_continued(folder: Path, now: RunConfig) -> RunConfig:
    """Read the settings of a run that is continued with the settings `now`.

    Raises UserError where they are missing or damaged, and where they name code that `now` does not.
    """
    before = read_config(folder)
    check_named_code(code_of(before), str(folder / CONFIG_NAME), code_of(now), trust=now.trust_code)
    return before


def check_unchanged(before: RunConfig, now: RunConfig, *, other_devices: bool = False) -> None:
    """Raise UserError where two decided settings of a run differ in what is computed.

    How it is executed may differ; with `other_devices` also the devices, and `check_global_batch` checks the batch.
    """
    free = {*EXECUTION, *(_FREE_WITH_DEVICES if other_devices else ())}
    old, new = _comparable(before), _comparable(now)
    for name in {**new, **old}:
        if name not in free and new.get(name) != old.get(name):
            raise UserError(
                f"a run is continued as it was, but {name} is now {new.get(name)!r} and was "
                f"{old.get(name)!r}; choose another --out for other settings"
            )


def _comparable(config: RunConfig) -> dict[str, Any]:
    """Return the settings by dotted name, with absolute paths."""
    settings = with_read_paths(config, lambda path: str(Path(path).resolve()))
    return {"cached": config.cached, **flat(settings)}


def identity_of(config: RunConfig, inputs: dict[str, str]) -> str:
    """Return a digest of what a run with decided settings computes: not of how, nor of where its files are."""
    free = {*EXECUTION, *_FREE_WITH_DEVICES, *PATHS}
    settings = {name: value for name, value in _comparable(config).items() if name not in free}
    return run_identity(settings, inputs)


@rank_zero_only
def check_inputs(out: Path, inputs: dict[str, str]) -> None:
    """Raise UserError where a run would be continued with other classes, labels or checkpoints than it started with."""
    before = read_environment(out).inputs
    for name in {**before, **inputs}:
        if before.get(name) != inputs.get(name):
            raise UserError(
                f"{str(out)!r} was started with other {name}: they have changed since; restore them, or choose another "
                "--out for a new run"
            )


def check_files(out: Path, changes: Changes) -> None:
    """Raise UserError where images of a run that is to go on are gone or were changed."""
    changes = replace(changes, came=())
    for phrase in changes.phrases():
        raise UserError(f"the data of {str(out)!r} has changed: {phrase}; restore them, or start a new run")


@rank_zero_only
def check_global_batch(out: Path, before: int, now: int, processes: int) -> None:
    """Raise UserError, with the batch size that fits, where the batch over all processes differs from the run's.

    `before` and `now` are the batches of one process. The steps, the schedule and the order of images depend on it.
    """
    old, new = before * read_environment(out).processes, now * processes
    if new != old:
        fits = f"--loader.batch-size {old // processes}" if old % processes == 0 else "another number of devices"
        raise UserError(
            f"the run used {old} images for a step over all processes, now it would use {new}: resume it with {fits}"
        )


@rank_zero_only
def check_space(out: Path, trained: int) -> None:
    """Raise UserError where the disk is too small for the checkpoints of `trained` parameters."""
    # Weights, two optimiser moments and an average, in the best, the last, the one before and the one being written.
    needed = 4 * 4 * 4 * trained + 16 * 2**20
    free = shutil.disk_usage(_existing(out)).free
    if free < needed:
        raise UserError(f"{str(out)!r} has {free / 2**20:.0f} MiB free; this run may need {needed / 2**20:.0f} MiB")


def environment(processes: int, inputs: dict[str, str]) -> Environment:
    """Describe the versions and the machine that a run is made with, its processes, and the digests of its inputs."""
    return Environment(
        crossdistill=crossdistill.__version__,
        python=platform.python_version(),
        torch=str(torch.__version__),
        timm=timm.__version__,
        lightning=lightning.__version__,
        platform=platform.platform(),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else (platform.processor() or "cpu"),
        threads=torch.get_num_threads(),
        processes=processes,
        inputs=inputs,
    )
