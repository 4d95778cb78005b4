"""Progress of long work: a bar with the remaining time on a terminal, else a line at least every minute."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 60.0

_T = TypeVar("_T", covariant=True)


class ProgressReport:
    """Progress of `total` steps, of which `done` are finished at the start; use it in a `with` statement."""

    def __init__(self, console: Console, title: str, total: int, done: int = 0) -> None:
        self.console = console
        self.title = title
        self.total = total
        self.done = self._first = done
        self._start = self._last_line = time.perf_counter()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, completed=done)

    def __enter__(self) -> "ProgressReport":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar from the terminal."""
        self._bar.stop()

    @property
    def due(self) -> bool:
        """Whether a line must be printed: there is no terminal, and none was printed for a minute."""
        return not self.console.is_terminal and time.perf_counter() - self._last_line >= SECONDS_BETWEEN_LINES

    def advance(self, steps: int = 1) -> None:
        """Count finished steps."""
        self.reach(self.done + steps)

    def reach(self, done: int) -> None:
        """State how many steps are finished."""
        self.done = done
        self._bar.update(self._task, completed=done)

    def print_state(self, state: str) -> None:
        """Show a state: beside the bar, or as a line with the time spent and left."""
        if self.console.is_terminal:
            self._bar.update(self._task, description=f"{self.title}  {state}")
            return
        spent = time.perf_counter() - self._start
        left = spent / max(self.done - self._first, 1) * (self.total - self.done)
        self._last_line = time.perf_counter()
        line = f"{self.title}  {state}  {spent:.0f} s, {left:.0f} s left"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Sized(Protocol[_T]):
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[_T]: ...


class Tracked(Generic[_T]):
    """Batches, or other `unit`s of work, whose progress is shown whenever they are iterated."""

    def __init__(self, units: _Sized[_T], console: Console, title: str, unit: str = "batch") -> None:
        self.units = units
        self.console = console
        self.title = title
        self.unit = unit

    def __iter__(self) -> Iterator[_T]:
        with ProgressReport(self.console, self.title, len(self.units)) as progress:
            for one in self.units:
                yield one
                progress.advance()
                if progress.due:
                    progress.print_state(f"{self.unit} {progress.done}/{progress.total}")
