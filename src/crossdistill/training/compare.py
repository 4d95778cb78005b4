"""Train the runs of a comparison: each once, by any number of processes that share its folder."""

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from crossdistill.config import RunConfig
from crossdistill.config.teacher import teacher_config
from crossdistill.distiller import create_distiller
from crossdistill.errors import UserError, kind_and_line
from crossdistill.report.measure import measure_of_all, score
from crossdistill.report.page import PAGE_NAME, write_run_page
from crossdistill.report.records import CONFIG_NAME, METRICS_NAME, RunRecord, read_run
from crossdistill.training.checks import check_settings
from crossdistill.training.engine import set_threads
from crossdistill.training.fit import fit
from crossdistill.training.grid import Axes, Cell, make_cells, taught_by, with_teacher, with_teacher_of
from crossdistill.training.inputs import decide, digests
from crossdistill.training.models import build_models, build_student
from crossdistill.training.outcome import Outcome, make_outcome
from crossdistill.training.places import placed, teacher_folder
from crossdistill.training.results import Failures, write_results
from crossdistill.training.run_folder import (
    check_inputs,
    check_unchanged,
    check_writable,
    read_continued,
)
from crossdistill.training.run_lock import claimed
from crossdistill.training.shared_data import SharedData
from crossdistill.training.write_cache import write_cache

_WAIT_S = 2.0


def compare(
    config: RunConfig,
    axes: Axes,
    out: Path,
    console: Console,
    *,
    shard: tuple[int, int] = (1, 1),
    since: float | None = None,
) -> Outcome:
    """Train the teachers that are named, then every student once for each method, setting and seed, in `out`.

    Finished runs are kept and interrupted ones are continued, so the same command can be repeated, also by several
    processes at once; `out` can be moved. With `shard` (i, n) every n-th run is trained, beginning with the i-th. A
    run that fails is reported and does not stop the others; it is tried again by a command that begins later than
    `since`, a time in seconds (by default now). Raises UserError for input that no run can use.
    """
    cells = check_comparison(config, axes, out)
    set_threads(config.engine)
    failures = Failures(out, time.time() if since is None else since)
    work = _Comparison(config, axes, out, console, failures, SharedData(out, console))
    work.prepare(cells[shard[0] - 1 :: shard[1]])
    work.train(cells[shard[0] - 1 :: shard[1]], cells)
    return make_outcome(cells, out, failures)


def check_comparison(config: RunConfig, axes: Axes, out: Path) -> list[Cell]:
    """Return the runs of a comparison. Raises UserError for what cannot be compared."""
    cells = placed(make_cells(config, axes), out)
    if config.loader.labels == "none" and config.probe_data is None:
        raise UserError(
            "compare ranks accuracies, but loader.labels is 'none': give --probe-data, labelled images whose nearest "
            "neighbours score the embeddings"
        )
    if config.engine.devices != 1 or config.engine.nodes != 1:
        raise UserError("compare trains its runs one after the other on one device; use `fit` for a run on several")
    if (out / CONFIG_NAME).exists():
        raise UserError(f"{str(out)!r} is the folder of a single run; choose another --out")
    check_writable(out)
    methods = [cell.variant.method for cell in cells]
    for cell in cells:
        check_settings(cell.config, methods)
    if any(cell.teacher_to_train for cell in cells) and config.model.teacher_classes is not None:
        raise UserError("model.teacher_classes: compare trains a teacher with the data's classes; leave it out")
    return cells


def finished_runs(cells: Sequence[Cell], out: Path) -> int:
    """Return how many runs of a comparison are finished."""
    return sum((out / folder / METRICS_NAME).exists() for folder in {cell.folder for cell in cells})


def outcome_so_far(cells: Sequence[Cell], out: Path, since: float) -> Outcome:
    """Return what is finished of a comparison that other processes have trained, without training."""
    return make_outcome(cells, out, Failures(out, since))


@dataclass
class _Comparison:
    """What the runs of one comparison share."""

    config: RunConfig
    axes: Axes
    out: Path
    console: Console
    failures: Failures
    data: SharedData

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Check the finished runs and the pairs of the others, train the teachers, and write their caches."""
        for cell in cells:
            if self.finished(cell):
                self._check_finished(self._taught(cell))
        todo = [cell for cell in cells if not self.finished(cell)]
        pairs = {cell.label: [cell] for cell in reversed(todo)}
        self._each(list(pairs.values())[::-1], self._check_pair)
        self._each(_grouped(todo, lambda cell: cell.teacher_to_train), self._train_teacher)
        reading = [cell for cell in todo if cell.config.cached and cell.variant.choice(cell.config).needs.teacher]
        groups = _grouped(reading, lambda cell: (cell.student, cell.teacher, cell.setting))
        self._each([group for group in groups if len({cell.label for cell in group}) > 1], self._write_cache)

    def _each(self, groups: Iterable[list[Cell]], action: Callable[[list[Cell]], None]) -> None:
        """Call `action` for groups of runs; those of a group for which it raises an error fail.

        Without a grid, and where it fails for all groups, the error is raised.
        """
        failed: list[tuple[list[Cell], Exception]] = []
        todo = [group for group in groups if not all(self.failures.of(cell.folder) for cell in group)]
        for group in todo:
            try:
                action(group)
            except Exception as error:  # the others are trained whatever it is
                failed.append((group, error))
                if len(failed) == len(todo) or not (self.axes.students or self.axes.teachers or self.axes.sweep):
                    raise
        for group, problem in failed:
            self._fail_all(group, problem)

    def _check_pair(self, group: list[Cell]) -> None:
        """Build the models of a run once, before any training. Raises UserError for a pair that does not fit."""
        config, choice = group[0].config, group[0].variant.choice(group[0].config)
        data = self.data.of(config)
        decided, complete = decide(config, choice, data)
        if group[0].teacher_to_train is None:
            build_models(decided, complete, data)
        elif not (teacher_folder(group[0], self.out) / METRICS_NAME).exists():
            teacher = self._teacher_settings(group[0])
            own, _ = decide(teacher, check_settings(teacher), self.data.of(teacher))
            trained = build_student(own.student, own.model, own.img_size, self.data.of(teacher))
            student = build_student(decided.student, decided.model, decided.img_size, data)
            create_distiller(complete, student=student, teacher=trained)

    def _teacher_settings(self, cell: Cell) -> RunConfig:
        """Return the settings of the run that trains a teacher: those of the recipe, whatever the run's own are."""
        return teacher_config(with_teacher(self.config, cell.teacher) if cell.teacher else self.config)

    def _train_teacher(self, group: list[Cell]) -> None:
        """Train the teacher of some runs, or wait until another process has."""
        if group[0].teacher_to_train is None:
            return
        folder = teacher_folder(group[0], self.out)
        config = replace(self._teacher_settings(group[0]), out=str(folder))
        while True:
            with claimed(self.out, folder.name) as mine:
                # Another process may have failed with it.
                if mine and not all(self.failures.of(cell.folder) for cell in group):
                    try:
                        self._complete(config)
                    except Exception as error:
                        # Before the claim ends, so that nobody tries it again.
                        self._fail_all(group, error)
                        raise
                if mine:
                    return
            time.sleep(_WAIT_S)

    def _taught(self, cell: Cell) -> RunConfig:
        """Return the settings of a run with its folder and its teacher's."""
        config, folder = replace(cell.config, out=str(self.out / cell.folder)), self.out / cell.folder
        if not cell.variant.choice(config).needs.teacher and (folder / CONFIG_NAME).exists():
            # An earlier command may have had another teacher, which makes no difference to this run.
            config = with_teacher_of(config, read_continued(folder, config))
        return config if cell.teacher_to_train is None else taught_by(config, teacher_folder(cell, self.out))

    def _write_cache(self, group: list[Cell]) -> None:
        """Write one cache with what all of some runs read, so that the teacher runs once."""
        first, *others = {cell.label: cell for cell in group}.values()
        choices = [other.variant.choice(other.config) for other in others]
        write_cache(self._taught(first), self.console, self.data.of(first.config), others=choices)

    def train(self, todo: Sequence[Cell], cells: Sequence[Cell]) -> None:
        """Train what is not finished; a run that another process is training is waited for."""
        start, trained, waiting = time.perf_counter(), 0, False
        while todo := [cell for cell in todo if not (self.finished(cell) or self.failures.of(cell.folder))]:
            before = trained
            for number, cell in enumerate(todo):
                with claimed(self.out, cell.folder) as mine:
                    if not mine or self.finished(cell) or self.failures.of(cell.folder):
                        continue
                    self._train(cell)
                write_results(self.out, cells, self.failures)
                trained += 1
                left = (time.perf_counter() - start) / trained * (len(todo) - number - 1)
                if number + 1 < len(todo):
                    self._say(f"{number + 1} of {len(todo)} runs, {left / 60:.0f} min left")
            if trained == before:
                if not waiting:
                    self._say(f"waiting for {len(todo)} runs that other processes are training")
                waiting = True
                time.sleep(_WAIT_S)

    def _train(self, cell: Cell) -> None:
        self.failures.forget(cell.folder)
        try:
            run = self._complete(self._taught(cell))
        except Exception as error:  # the others are trained whatever it is
            self._fail(cell, error)
        else:
            measure = measure_of_all([run])
            self._say(f"  {cell.folder}: {score(run):.2f}% {measure.name} on the test split")

    def _complete(self, config: RunConfig) -> RunRecord:
        """Train a run, continue it, or check that the finished one has the same settings."""
        out = Path(config.out or "")
        if (out / METRICS_NAME).exists():
            self._check_finished(config)
        else:
            resume = (out / CONFIG_NAME).exists()
            fit(config, resume=resume, console=self.console, data=self.data.of(config), root=self.out)
        return read_run(out)

    def _check_finished(self, config: RunConfig) -> None:
        """Raise UserError where a finished run has other settings or inputs; write its page where it has none."""
        out, data = Path(config.out or ""), self.data.of(config)
        now, before = (decide(one, check_settings(one), data)[0] for one in (config, read_continued(out, config)))
        check_unchanged(before, now)
        check_inputs(out, digests(now, data, self.data.probed(now)))
        if not (out / PAGE_NAME).exists():
            write_run_page(out)

    def finished(self, cell: Cell) -> bool:
        """Return whether a run is finished."""
        return (self.out / cell.folder / METRICS_NAME).exists()

    def _fail_all(self, group: Sequence[Cell], error: Exception) -> None:
        for cell in group:
            if self.failures.of(cell.folder) is None:
                self._fail(cell, error)

    def _fail(self, cell: Cell, error: Exception) -> None:
        known = isinstance(error, UserError)
        reason = str(error) if known else kind_and_line(error)
        self.failures.add(cell.folder, reason, "" if known else "".join(traceback.format_exception(error)))
        self._say(f"  {cell.folder} failed: {reason}")

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], Any]) -> list[list[Cell]]:
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return list(groups.values())
