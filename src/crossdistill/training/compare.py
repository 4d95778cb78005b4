"""One teacher, one student, one recipe: several methods over several seeds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from crossdistill.config import RunConfig
from crossdistill.config.teacher import teacher_config
from crossdistill.data import ImageData
from crossdistill.errors import UserError
from crossdistill.files import make_folder
from crossdistill.methods import choose_method, options_for
from crossdistill.report.page import PAGE_NAME, comparison_table, write_comparison_page, write_run_page
from crossdistill.report.records import RunRecord, read_run
from crossdistill.report.tables import TextTable
from crossdistill.training.fit import fit, read_data
from crossdistill.training.models import check_settings
from crossdistill.training.run_folder import CONFIG_NAME, METRICS_NAME, check_unchanged, read_config
from crossdistill.training.write_cache import write_cache


@dataclass(frozen=True)
class Variant:
    """A method with options of its own, by method, which replace the recipe's; `label` names it in tables."""

    label: str
    method: str
    options: Mapping[str, Mapping[str, Any]]

    def applied(self, config: RunConfig) -> RunConfig:
        """Return the settings of a run of this variant."""
        options = {key: {**config.options.get(key, {}), **values} for key, values in self.options.items()}
        return replace(config, method=self.method, options={**config.options, **options})

    def uses_teacher(self, config: RunConfig) -> bool:
        """Return whether the method reads anything of a teacher. Raises UserError."""
        return bool(choose_method(self.method, options_for(self.method, self.applied(config).options)).needs.teacher)

    def folder(self, seed: int) -> str:
        """Name the folder of one of its runs."""
        plain = re.sub(r"[^\w=.+-]+", "_", self.label).strip("_")
        return f"{plain}-s{seed}"


def compare(
    config: RunConfig, variants: Sequence[Variant], seeds: Sequence[int], out: Path, console: Console
) -> tuple[TextTable, Path]:
    """Train the teacher (unless a checkpoint is given), then the student once for each method and seed, in `out`.

    Finished runs are kept and an interrupted one goes on, so the same command can be given again; `out` can be moved.
    Returns the table and the path of the page. Raises UserError for bad input.
    """
    _check(config, variants, seeds, out)
    make_folder(out)
    if config.teacher_checkpoint is None and any(variant.uses_teacher(config) for variant in variants):
        config = _with_teacher(config, out / "teacher", console)
    _, data = read_data(config)
    runs = [(variant, seed, out / variant.folder(seed)) for seed in seeds for variant in variants]
    unfinished = {variant.label for variant, _, folder in runs if not (folder / METRICS_NAME).exists()}
    todo = [variant for variant in variants if variant.label in unfinished and variant.uses_teacher(config)]
    taught = [variant.applied(config) for variant in todo]
    if config.cached and len(taught) > 1:
        # One cache with what all of them read, so that the teacher runs once.
        write_cache(taught[0], console, data, others=taught[1:])
    # Seed by seed, so that an early table compares equal numbers of runs.
    records: dict[str, list[RunRecord]] = {variant.label: [] for variant in variants}
    for variant, seed, folder in runs:
        record = _complete(replace(variant.applied(config), seed=seed, out=str(folder)), data, out, console)
        records[variant.label].append(record)
    return comparison_table(records), write_comparison_page(out, records)


def _check(config: RunConfig, variants: Sequence[Variant], seeds: Sequence[int], out: Path) -> None:
    """Raise UserError for what cannot be compared."""
    if not variants or not seeds:
        raise UserError("nothing to compare: give at least one method and one seed")
    labels = {variant.label for variant in variants}
    if len(set(seeds)) < len(seeds) or len(labels) < len(variants):
        raise UserError("a method or a seed is named twice")
    if config.engine.devices != 1 or config.engine.nodes != 1:
        raise UserError("compare trains its runs one after the other on one device; use `fit` for a run on several")
    if (out / CONFIG_NAME).exists():
        raise UserError(f"{str(out)!r} is the folder of a single run; choose another --out")
    for variant in variants:
        # A teacher that is not named yet is trained first.
        named = variant.applied(config)
        check_settings(named if named.teachers else replace(named, teacher=config.teacher))


def _with_teacher(config: RunConfig, folder: Path, console: Console) -> RunConfig:
    """Train the teacher, and return the settings of runs that it teaches."""
    settings = replace(teacher_config(config), out=str(folder))
    _, data = read_data(settings)
    _complete(settings, data, folder.parent, console)
    # The run states what its model was built with.
    model = replace(config.model, teacher_args={}, teacher_img_size=None, teacher_stages=None, teacher_classes=None)
    return replace(config, teacher_checkpoint=str(folder), model=model)


def _complete(config: RunConfig, data: ImageData, root: Path, console: Console) -> RunRecord:
    """Train a run, continue it, or check that the finished one has the same settings."""
    out = Path(config.out or "")
    if (out / METRICS_NAME).exists():
        read_run(out)
        check_unchanged(read_data(read_config(out), data)[0], read_data(config, data)[0])
        if not (out / PAGE_NAME).exists():
            write_run_page(out)
    else:
        fit(config, resume=(out / CONFIG_NAME).exists(), console=console, data=data, root=root)
    record = read_run(out)
    console.print(f"  {out.name}: {record.top1:.2f}% on the test split", highlight=False, markup=False)
    return record
