"""`crossdistill cache`."""

from collections.abc import Sequence
from dataclasses import replace

from crossdistill.commands._run import RunParser, read_early_flags, read_recipe
from crossdistill.commands._show import consoles
from crossdistill.errors import UserError

ABOUT = "Store the teacher's outputs for every view of the training images, for later runs with --cache auto."
_UNREAD = (
    *(
        "probe_data",
        "probe_every",
        "probe_linear",
        "out",
        "optim",
        "teacher_training",
        "engine.strategy",
        "engine.shard_teacher",
        "engine.compile",
    ),
    *("engine.channels_last", "engine.accumulate", "engine.sync_batchnorm", "engine.log_every"),
)


def run(argv: Sequence[str]) -> int:
    """Write a teacher cache."""
    base = read_recipe(argv)
    base = base if base.cached else replace(base, cache="auto")
    out = read_early_flags(argv).out or base.out
    if out is not None:
        raise UserError(f"a cache is not a run: give its folder as --cache {out}, not as --out")
    config, _ = RunParser("cache", ABOUT, unread=_UNREAD).read_run(argv, base)
    from crossdistill.training.engine import is_first_process
    from crossdistill.training.write_cache import write_cache

    result, progress = consoles()
    stored = write_cache(config, progress)
    if is_first_process():
        size = stored.format.bytes(stored.views) / 2**20
        result.print(f"cache: {stored.folder}", soft_wrap=True, highlight=False, markup=False)
        result.print(f"{stored.views} views of {stored.format.images} images, {size:.1f} MiB", highlight=False)
    return 0
