"""One teacher, one student, one recipe: several methods over several seeds."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from crossdistill.config import RunConfig
from crossdistill.errors import UserError
from crossdistill.methods import find_method
from crossdistill.report.page import (
    PAGE_NAME,
    TextTable,
    comparison_table,
    load_groups,
    write_comparison_page,
    write_run_page,
)
from crossdistill.training.run import fit, teacher_config
from crossdistill.training.setup import CONFIG_NAME, METRICS_NAME, check_names, check_unchanged


def compare(
    config: RunConfig, methods: Sequence[str], seeds: Sequence[int], out: Path, console: Console
) -> tuple[TextTable, Path]:
    """Train the teacher (unless a checkpoint is given), then the student once per method and seed, in `out`.

    Runs that are finished are kept, an interrupted one goes on, so the same command can be given
    again. Gives the table and the path of the page. Raises UserError for bad input.
    """
    if not methods or not seeds:
        raise UserError("nothing to compare: give at least one method and one seed")
    if len(set(seeds)) < len(seeds) or len(set(methods)) < len(methods):
        raise UserError("a method or a seed is named twice")
    if config.engine.devices != 1 or config.engine.nodes != 1:
        raise UserError("compare trains its runs one after the other on one device; use `fit` for a run on several")
    if (out / CONFIG_NAME).exists():
        raise UserError(f"{str(out)!r} is the folder of a single run; choose another --out")
    for method in methods:
        check_names(replace(config, method=method))
    if config.teacher_checkpoint is None and any(find_method(method).uses_teacher for method in methods):
        folder = out / "teacher"
        _finish(replace(teacher_config(config), out=str(folder)), console)
        # The run brings what its model was built with.
        model = replace(config.model, teacher_args={}, teacher_img_size=None, teacher_stages=None)
        config = replace(config, teacher_checkpoint=str(folder), model=model)
    folders: dict[str, list[Path]] = {
        method: [out / f"{_plain(method)}-s{seed}" for seed in seeds] for method in methods
    }
    # Seed by seed, so that an early look at the table compares equal numbers of runs.
    for place, seed in enumerate(seeds):
        for method in methods:
            run = replace(config, method=method, seed=seed, out=str(folders[method][place]))
            _finish(run, console)
    groups = load_groups(folders)
    return comparison_table(groups), write_comparison_page(out, groups)


def _plain(method: str) -> str:
    return method.replace(":", "_").replace(".", "_")


def _finish(config: RunConfig, console: Console) -> None:
    out = Path(config.out or "")
    if (out / METRICS_NAME).exists():
        check_unchanged(config, out)
        if not (out / PAGE_NAME).exists():
            write_run_page(out)
    else:
        fit(config, resume=(out / CONFIG_NAME).exists(), console=console)
    metrics = json.loads((out / METRICS_NAME).read_text())
    console.print(f"  {out.name}: {metrics['student']['test']['top1']:.2f}% on the test split", highlight=False)
