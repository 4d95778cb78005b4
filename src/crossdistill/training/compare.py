"""One teacher, one student, one recipe: several methods over several seeds."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from crossdistill.config import RunConfig, parse_value
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
from crossdistill.training.cached import stages_to_store, write_cache
from crossdistill.training.run import fit, teacher_config
from crossdistill.training.setup import CONFIG_NAME, METRICS_NAME, check_names, check_unchanged


def compare(
    config: RunConfig, methods: Sequence[str], seeds: Sequence[int], out: Path, console: Console
) -> tuple[TextTable, Path]:
    """Train the teacher (unless a checkpoint is given), then the student once per method and seed, in `out`.

    A method may come with options of its own, "rsd{kappa=0}", to compare variants. Runs that are
    finished are kept, an interrupted one goes on, so the same command can be given again. Gives the
    table and the path of the page. Raises UserError for bad input.
    """
    if not methods or not seeds:
        raise UserError("nothing to compare: give at least one method and one seed")
    if len(set(seeds)) < len(seeds) or len(set(methods)) < len(methods):
        raise UserError("a method or a seed is named twice")
    if config.engine.devices != 1 or config.engine.nodes != 1:
        raise UserError("compare trains its runs one after the other on one device; use `fit` for a run on several")
    if (out / CONFIG_NAME).exists():
        raise UserError(f"{str(out)!r} is the folder of a single run; choose another --out")
    chosen = [_variant(config, variant) for variant in methods]
    for variant in chosen:
        check_names(variant)
    if config.teacher_checkpoint is None and any(find_method(variant.method).uses_teacher for variant in chosen):
        folder = out / "teacher"
        _finish(replace(teacher_config(config), out=str(folder)), console)
        # The run brings what its model was built with.
        model = replace(config.model, teacher_args={}, teacher_img_size=None, teacher_stages=None)
        config = replace(config, teacher_checkpoint=str(folder), model=model)
    folders: dict[str, list[Path]] = {
        method: [out / f"{_plain(method)}-s{seed}" for seed in seeds] for method in methods
    }
    unfinished = [m for m in methods if not all((folder / METRICS_NAME).exists() for folder in folders[m])]
    taught = [v for v in (_variant(config, m) for m in unfinished) if find_method(v.method).uses_teacher]
    if config.cached and len(taught) > 1:
        # One cache for all: that of the method which reads the most.
        write_cache(replace(max(taught, key=stages_to_store), out=None), console)
    # Seed by seed, so that an early look at the table compares equal numbers of runs.
    for place, seed in enumerate(seeds):
        for method in methods:
            run = replace(_variant(config, method), seed=seed, out=str(folders[method][place]))
            _finish(run, console)
    groups = load_groups(folders)
    return comparison_table(groups), write_comparison_page(out, groups)


def split_variants(text: str) -> list[str]:
    """Split "none,rsd{kappa=0,weight=0.2}" at the commas that stand outside braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", text) if part.strip()]


def _variant(config: RunConfig, variant: str) -> RunConfig:
    """Give the config of a method, or of "method{option=value,...}", whose options go over the recipe's."""
    named = re.fullmatch(r"([^{}]+)(?:\{(.*)\})?", variant)
    if not named:
        raise UserError(f"method {variant!r}: write a name, or name{{option=value,...}}")
    method, changes = named.groups()
    if not changes:
        return replace(config, method=method)
    options = dict(config.options.get(method, {}))
    for change in re.split(r",(?![^\[]*\])", changes):
        option, equals, value = change.partition("=")
        if change and not equals:
            raise UserError(f"method {variant!r}: {change!r} is not option=value")
        if change:
            options[option.strip()] = parse_value(value.strip())
    return replace(config, method=method, options={**config.options, method: options})


def _plain(variant: str) -> str:
    return re.sub(r"[^\w=.+-]+", "_", variant).strip("_")


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
