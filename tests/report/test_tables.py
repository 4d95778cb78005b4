import io

import pytest
from rich.console import Console

from crossdistill.report.tables import TextTable, as_csv, as_latex, as_markdown, show, text_table

TABLE = TextTable(
    "Scores",
    ["", "top-1, %", "calibration error, %"],
    [["a_model_with_a_rather_long_name_[bold]and_brackets", "12.34", "1234567.89"], ["none", "5.00", "0.10"]],
    note="A note.",
)


def printed(table, width, terminal):
    out = io.StringIO()
    show(table, Console(file=out, width=width, force_terminal=terminal, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [20, 60, 200])
def test_numbers_and_headings_are_whole(width, terminal):
    text = printed(TABLE, width, terminal)
    for whole in ("top-1, %", "calibration error, %", "12.34", "1234567.89", "0.10"):
        assert whole in text
    assert "…" not in text


def test_names_fold_on_a_terminal_and_are_whole_in_a_pipe():
    assert TABLE.rows[0][0] in printed(TABLE, 60, terminal=False)
    folded = printed(TABLE, 60, terminal=True)
    assert TABLE.rows[0][0] not in folded
    # Nothing of the name is lost, and its brackets are not markup.
    column = "".join(line[:28].strip() for line in folded.splitlines() if "Scores" not in line and "note" not in line)
    assert "rather_long_name_[bold]and" in column


def test_a_table_of_texts():
    text = printed(text_table(["method", "idea"], [["kd", "word " * 30]]), 80, terminal=True)
    assert max(len(line) for line in text.splitlines()) <= 80


def test_the_forms_for_papers_and_programs():
    rows = [["a<b", "12,345", "3.1e-12"], ["1,2", "1,234,567.5", ""]]
    table = TextTable("", ["", "params", "p"], rows, note="What p is.")
    assert as_markdown(table).endswith("| 1,2 | 1,234,567.5 |  |\n\nWhat p is.")
    assert as_csv(table).splitlines() == [",params,p", "a<b,12345,3.1e-12", '"1,2",1234567.5,']
    assert r"a\textless{}b & 12,345 & 3.1e-12 \\" in as_latex(table)
    assert as_latex(table).endswith("\n% What p is.")
