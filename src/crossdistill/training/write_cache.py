"""`crossdistill cache`: store the teacher's outputs for later runs."""

import os
from collections.abc import Sequence

from rich.console import Console

from crossdistill.cache import TeacherCache
from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.errors import UserError
from crossdistill.methods import MethodChoice
from crossdistill.training.cached import prepare_cache
from crossdistill.training.checks import check_settings
from crossdistill.training.engine import choose_device, set_threads
from crossdistill.training.inputs import (
    check_decoding,
    decide,
    make_teacher_views,
    make_views,
    own_size,
    report_data,
)
from crossdistill.training.models import build_models
from crossdistill.training.teacher_report import report_teachers


def write_cache(
    config: RunConfig, console: Console, data: ImageData | None = None, others: Sequence[MethodChoice] = ()
) -> TeacherCache:
    """Write the teacher's outputs, with the stage maps that the method and the `others` read.

    Raises UserError for bad input, as `fit` does.
    """
    if not config.cached:
        raise UserError("--cache is off, so there is nothing to write; give a folder, or auto")
    choice = check_settings(config)
    if (config.engine.devices != 1 or config.engine.nodes != 1) and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"to write a cache with {config.engine.devices} devices, start the command under torchrun "
            "--nproc-per-node: each process writes the shards that no other is writing"
        )
    if not choice.needs.teacher:
        raise UserError(f"method {config.method!r} uses no teacher, so there is nothing to store")
    set_threads(config.engine)
    if data is None:
        data = load_data(config.data, config.loader)
        report_data(data, console)
    config, choice = decide(config, choice, data)
    check_decoding(config, data)
    distiller = build_models(config, choice, data)
    device = choose_device(config.engine)
    report_teachers(config, data, distiller, device, console)
    assert distiller.teacher is not None
    student, teacher = distiller.student, distiller.teacher.backbone
    reads = [other.needs_for(student, teacher).teacher for other in others]
    size = own_size(config.augment, distiller.teacher)
    if size is None:
        views, _ = make_views(config.loader, config.augment, config.seed, data, student, device)
    else:
        views, _ = make_teacher_views(config.loader, config.augment, data, student, size)
    return prepare_cache(config, data.train, views, distiller, device, console, reads)
