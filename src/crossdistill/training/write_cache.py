"""`crossdistill cache`: store the teacher's outputs for runs to come."""

import os
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from crossdistill.cache import TeacherCache
from crossdistill.config import RunConfig
from crossdistill.data import ImageData
from crossdistill.errors import UserError
from crossdistill.methods import choose_method, options_for
from crossdistill.training.cached import prepare_cache
from crossdistill.training.engine import choose_device
from crossdistill.training.fit import make_views, read_data
from crossdistill.training.models import build_models, check_settings, look_at_teachers
from crossdistill.types import Reads


def write_cache(
    config: RunConfig, console: Console, data: ImageData | None = None, others: Sequence[RunConfig] = ()
) -> TeacherCache:
    """Write the teacher's outputs, with the stage maps that the method and those of `others` read.

    Raises UserError for bad input, as `fit` does.
    """
    config = config if config.cached else replace(config, cache="auto")
    choice = check_settings(config)
    if (config.engine.devices != 1 or config.engine.nodes != 1) and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"to write a cache with {config.engine.devices} devices, start the command under torchrun "
            "--nproc-per-node: each process writes the shards that no other is writing"
        )
    if not choice.needs.teacher:
        raise UserError(f"method {config.method!r} uses no teacher, so there is nothing to store")
    config, data = read_data(config, data)
    distiller = build_models(config, data)
    device = choose_device(config.engine)
    look_at_teachers(config, data, distiller, device, console)
    assert distiller.teacher is not None
    reads: list[Reads] = []
    for other in others:
        options = options_for(other.method, read_data(other, data)[0].options)
        method = choose_method(other.method, options).build(distiller.student, distiller.teacher.backbone)
        reads.append(method.needs.teacher if method is not None else Reads())
    views, _ = make_views(config.loader, config.augment, config.seed, data, distiller.student, device)
    return prepare_cache(config, data.train, views, distiller, device, console, reads)
