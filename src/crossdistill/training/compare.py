"""One teacher, one student, one recipe: several methods over several seeds."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from crossdistill.config import RunConfig
from crossdistill.config.teacher import teacher_config
from crossdistill.data import ImageData, load_data
from crossdistill.data.split_list import SPLIT_NAME, SplitList, read_split_list
from crossdistill.distiller import create_distiller
from crossdistill.errors import UserError
from crossdistill.methods import MethodChoice, choose_method, options_for
from crossdistill.report.page import PAGE_NAME, comparison_table, write_comparison_page, write_run_page
from crossdistill.report.records import CONFIG_NAME, METRICS_NAME, RunRecord, read_run
from crossdistill.report.tables import TextTable
from crossdistill.training.engine import set_threads
from crossdistill.training.fit import fit
from crossdistill.training.inputs import decide, digests, report_data
from crossdistill.training.models import build_student, check_settings
from crossdistill.training.run_folder import (
    check_inputs,
    check_unchanged,
    check_writable,
    read_config,
    read_continued,
)
from crossdistill.training.write_cache import write_cache

_DIVISION = ("val_fraction", "split_seed", "max_train", "train_dir", "val_dir", "test_dir", "on_bad_image")
"""Settings of the loader that the division of a folder depends on."""


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

    def choice(self, config: RunConfig) -> MethodChoice:
        """Return the method with its options. Raises UserError."""
        return choose_method(self.method, options_for(self.method, self.applied(config).options))

    def folder(self, seed: int) -> str:
        """Name the folder of one of its runs."""
        plain = re.sub(r"[^\w=.+-]+", "_", self.label).strip("_")
        return f"{plain}-s{seed}"


def compare(
    config: RunConfig, variants: Sequence[Variant], seeds: Sequence[int], out: Path, console: Console
) -> tuple[TextTable, Path]:
    """Train the teacher (unless a checkpoint is given), then the student once for each method and seed, in `out`.

    Finished runs are kept and an interrupted one is continued, so the same command can be repeated; `out` can be moved.
    Returns the table and the path of the page. Raises UserError for bad input.
    """
    _check(config, variants, seeds, out)
    set_threads(config.engine)
    data = load_data(config.data, config.loader, _earlier_list(config, out))
    report_data(data, console)
    choices = {variant.label: variant.choice(config) for variant in variants}
    if _trains_teacher(config, choices.values()):
        teacher = replace(teacher_config(config), out=str(out / "teacher"))
        same = (teacher.data, teacher.loader) == (config.data, config.loader)
        teacher_data = data if same else load_data(teacher.data, teacher.loader, _earlier_list(teacher, out))
        if not (out / "teacher" / METRICS_NAME).exists():
            _check_models(config, choices.values(), data, teacher, teacher_data)
        _complete(teacher, teacher_data, out, console)
        config = _taught_by(config, out / "teacher")
    runs = [(variant, seed, out / variant.folder(seed)) for seed in seeds for variant in variants]
    unfinished = {variant.label for variant, _, folder in runs if not (folder / METRICS_NAME).exists()}
    todo = [variant for variant in variants if variant.label in unfinished and choices[variant.label].needs.teacher]
    if config.cached and len(todo) > 1:
        # One cache with what all of them read, so that the teacher runs once.
        write_cache(todo[0].applied(config), console, data, others=[choices[variant.label] for variant in todo[1:]])
    # Seed by seed, so that an early table compares equal numbers of runs.
    records: dict[str, list[RunRecord]] = {variant.label: [] for variant in variants}
    for variant, seed, folder in runs:
        record = _complete(replace(variant.applied(config), seed=seed, out=str(folder)), data, out, console)
        records[variant.label].append(record)
    return comparison_table(records), write_comparison_page(out, records)


def _earlier_list(config: RunConfig, out: Path) -> SplitList | None:
    """Return the division that the runs of a comparison which goes on have, where they read the same data."""
    for path in sorted(out.glob(f"*/{SPLIT_NAME}")):
        before = read_config(path.parent)
        same_data = Path(before.data).resolve() == Path(config.data).resolve()
        same_division = all(getattr(before.loader, name) == getattr(config.loader, name) for name in _DIVISION)
        if same_data and same_division:
            return read_split_list(path.parent)
    return None


def _check(config: RunConfig, variants: Sequence[Variant], seeds: Sequence[int], out: Path) -> None:
    """Raise UserError for what cannot be compared."""
    if not variants or not seeds:
        raise UserError("nothing to compare: give at least one method and one seed")
    labels = {variant.label for variant in variants}
    if len(set(seeds)) < len(seeds) or len(labels) < len(variants):
        raise UserError("a method or a seed is named twice")
    if config.loader.labels == "none":
        raise UserError("compare ranks accuracies, but loader.labels is 'none'; use `fit`, and `eval --knn`")
    if config.engine.devices != 1 or config.engine.nodes != 1:
        raise UserError("compare trains its runs one after the other on one device; use `fit` for a run on several")
    if (out / CONFIG_NAME).exists():
        raise UserError(f"{str(out)!r} is the folder of a single run; choose another --out")
    check_writable(out)
    methods = [variant.method for variant in variants]
    for variant in variants:
        for seed in seeds:
            check_settings(replace(variant.applied(config), seed=seed), methods)
    trains_teacher = _trains_teacher(config, [variant.choice(config) for variant in variants])
    if trains_teacher and config.model.teacher_classes is not None:
        raise UserError("model.teacher_classes: compare trains a teacher with the data's classes; leave it out")


def _trains_teacher(config: RunConfig, choices: Iterable[MethodChoice]) -> bool:
    return config.teacher_checkpoint is None and any(choice.needs.teacher for choice in choices)


def _check_models(
    config: RunConfig, choices: Iterable[MethodChoice], data: ImageData, teacher: RunConfig, teacher_data: ImageData
) -> None:
    """Build every pair once, before the teacher is trained. Raises UserError for one that does not fit."""
    own, _ = decide(teacher, check_settings(teacher), teacher_data)
    trained = build_student(own.student, own.model, own.img_size, teacher_data)
    for choice in choices:
        decided, complete = decide(config, choice, data)
        student = build_student(decided.student, decided.model, decided.img_size, data)
        create_distiller(complete, student=student, teacher=trained)


def _taught_by(config: RunConfig, teacher: Path) -> RunConfig:
    """Return the settings with a finished run as the teacher; the run states what its model was built with."""
    model = replace(config.model, teacher_args={}, teacher_img_size=None, teacher_stages=None, teacher_pretrained=False)
    return replace(config, teacher_checkpoint=str(teacher), model=model)


def _complete(config: RunConfig, data: ImageData, root: Path, console: Console) -> RunRecord:
    """Train a run, continue it, or check that the finished one has the same settings."""
    out = Path(config.out or "")
    if (out / METRICS_NAME).exists():
        now, before = (decide(one, check_settings(one), data)[0] for one in (config, read_continued(out, config)))
        check_unchanged(before, now)
        check_inputs(out, digests(now, data))
        if not (out / PAGE_NAME).exists():
            write_run_page(out)
    else:
        fit(config, resume=(out / CONFIG_NAME).exists(), console=console, data=data, root=root)
    record = read_run(out)
    console.print(f"  {out.name}: {record.top1:.2f}% on the test split", highlight=False, markup=False)
    return record
