import io

from rich.console import Console

from crossdistill import progress
from crossdistill.progress import ProgressReport


def test_without_a_terminal_a_line_is_due_every_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    out = io.StringIO()
    with ProgressReport(Console(file=out, width=80), "kd s0", 100, done=20) as report:
        assert not report.due
        now[0] = 59.0
        assert not report.due
        now[0] = 61.0
        report.advance(40)
        assert report.due
        report.print_state("epoch 1/3  [loss] 2.0")
        assert not report.due
    # 40 of 80 steps took 61 seconds.
    assert out.getvalue() == "kd s0  epoch 1/3  [loss] 2.0  61 s, 61 s left\n"


def test_on_a_terminal_there_is_a_bar_and_no_line():
    out = io.StringIO()
    with ProgressReport(Console(file=out, width=80, force_terminal=True), "kd s0", 10) as report:
        report.advance(10)
        assert not report.due
        report.print_state("epoch 3/3")
    assert "100%" in out.getvalue()
    assert " s left\n" not in out.getvalue()
