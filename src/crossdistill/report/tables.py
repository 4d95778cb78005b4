"""Tables of strings, for a page and for the terminal."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NARROWEST_ON_TERMINAL, _NARROWEST_IN_PIPE = 24, 72
"""Width to which a column of names or sentences may be narrowed, before lines are longer than the output is wide."""


@dataclass(frozen=True)
class TextTable:
    """A table; columns other than the first hold numbers, unless they are listed in `text_columns`."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    text_columns: tuple[int, ...] = (0,)


def show(table: TextTable, console: Console) -> None:
    """Print a table. Numbers and headings are never cut: names are wrapped, then lines are longer than the terminal."""
    shown = Table(
        title=table.title or None,
        caption=table.note or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    narrowest = _NARROWEST_ON_TERMINAL if console.is_terminal else _NARROWEST_IN_PIPE
    needed = 1
    for place, head in enumerate(table.header):
        widest = max(len(cell) for cell in (head, *(row[place] for row in table.rows)))
        if place in table.text_columns:
            least = min(widest, narrowest)
            shown.add_column(Text(head), overflow="fold", min_width=least)
        else:
            least = widest
            shown.add_column(Text(head), justify="right", no_wrap=True, min_width=least)
        needed += least + 3
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    # `print(width=...)` is never more than the console's own width.
    width = console.width
    console.width = max(width, needed)
    try:
        console.print(shown, crop=False)
    finally:
        console.width = width


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> TextTable:
    """Make a table without title in which every column is text."""
    return TextTable("", list(header), [list(row) for row in rows], text_columns=tuple(range(len(header))))


def as_markdown(table: TextTable) -> str:
    """Return a table as Markdown, with its note below."""
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return text + (f"\n\n{table.note}" if table.note else "")


def as_csv(table: TextTable) -> str:
    """Return a table as CSV, with numbers as programs read them."""
    text = io.StringIO()
    rows = [[_THOUSANDS.sub("", cell) if _NUMBER.fullmatch(cell) else cell for cell in row] for row in table.rows]
    csv.writer(text, lineterminator="\n").writerows([table.header, *rows])
    return text.getvalue().rstrip("\n")


def as_latex(table: TextTable) -> str:
    """Return a table as a LaTeX `tabular` with the rules of booktabs, and its note as a comment."""
    rows = [" & ".join(map(_in_latex, line)) + r" \\" for line in (table.header, *table.rows)]
    columns = "".join("l" if place in table.text_columns else "r" for place in range(len(table.header)))
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    return "\n".join([*body, r"\end{tabular}", *([f"% {table.note}"] if table.note else [])])


_NUMBER, _THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?"), re.compile(",")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def _in_latex(text: str) -> str:
    return re.sub(r"[\\~^±<>&%$#_{}]", lambda found: _LATEX.get(found.group(), "\\" + found.group()), text)
