"""Write the figures as tables."""

from typing import Any

TARGETS = {"kd": 1.05, "rsd": 1.05, "dkd": 1.05, "dist": 1.05, "hcd": 1.35, "fbt": 1.5}
SMALL_TARGETS = {"kd": 1.15, "rsd": 1.15, "dkd": 1.15, "dist": 1.15, "hcd": 1.35, "fbt": 1.5}


def target(method: str, size: int) -> float | None:
    """Return the target for a step on the cache, relative to the student alone; None without one."""
    return (SMALL_TARGETS if size <= 64 else TARGETS).get(method)


def as_markdown(found: dict[str, Any]) -> str:
    """Return the tables of all parts that were measured."""
    parts = {
        "steps": _steps,
        "losses": _losses,
        "build": _build,
        "processes": _processes,
        "waiting": _waiting,
        "layout": _layout,
        "allocator": _allocator,
    }
    lines = [line for part, tables in parts.items() if part in found for line in tables(found[part])]
    return "\n".join(lines) + "\n"


def _steps(pairs: list[dict[str, Any]]) -> list[str]:
    header = ["case", "time", "middle half", "floor", "target", "time / (student + teacher)", "memory", "trained"]
    lines: list[str] = []
    for pair in pairs:
        title = f"### {pair['size']} px: {pair['student']} <- {pair['teacher']} ({pair['pair']}), batch {pair['batch']}"
        lines += [title, "", *_table(header, [_step(row, pair["size"]) for row in pair["rows"]])]
    return lines


def _step(row: dict[str, Any], size: int) -> list[str]:
    method, _, how = row["case"].partition(" ")
    wanted = target(method, size) if how == "cached" else None
    missed = " missed" if wanted is not None and row["ratio"] > wanted else ""
    low, high = row["quartiles"]
    return [
        row["case"],
        f"{row['ratio']:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{row['floor']:.2f}",
        _number(wanted) + missed,
        _number(row["ratio_to_student_and_teacher"]),
        _number(row["memory"]),
        _number(row["trained"]),
    ]


def _losses(losses: dict[str, Any]) -> list[str]:
    widths = sorted({row["width"] for row in losses["rsd"]})
    rows = []
    for batch in sorted({row["batch"] for row in losses["rsd"]}):
        took = [row["seconds"] for row in losses["rsd"] if row["batch"] == batch]
        rows.append([str(batch), *(f"{1000 * seconds:.2f}" for seconds in took)])
    lines = ["### RSD's loss alone, forward and backward, ms", ""]
    lines += _table(["batch", *(f"D = {width}" for width in widths)], rows)
    lines += ["### Logit losses alone against classes, batch 128, ms", ""]
    kinds = ["kd", "dkd", "dist", "ofa"]
    rows = [[str(r["classes"]), *(f"{1000 * r[kind]:.2f}" for kind in kinds)] for r in losses["logits"]]
    lines += _table(["classes", *kinds], rows)
    lines += [
        f"RSD's loss is 1% of a step of {row['student']} at {row['size']} px, batch {row['batch']}, at a width of "
        f"{row['width_for_1_percent']:.0f}, by operations."
        for row in losses["bend"]
    ]
    return [*lines, ""]


def _build(found: list[dict[str, Any]]) -> list[str]:
    rows = [[r["teacher"], str(r["size"]), f"{r['ratio']:.2f}", str(r["bytes_per_view"])] for r in found]
    title = "### Writing one view against the teacher's forward over it"
    return [title, "", *_table(["teacher", "px", "ratio", "bytes a view"], rows)]


def _processes(row: dict[str, Any]) -> list[str]:
    return [
        f"Two gloo processes, RSD at {row['size']} px with {row['batch_per_process']} images each: "
        f"{100 * row['efficiency']:.0f}% of twice the speed of one.",
        "",
    ]


def _waiting(found: list[dict[str, Any]]) -> list[str]:
    rows = [[r["recipe"], r["images"], f"{r['wait_percent']:.1f}", f"{r['most']:.1f}"] for r in found]
    return ["### Waiting for data, % of the time", "", *_table(["recipe", "images", "median", "most"], rows)]


def _layout(found: list[dict[str, Any]]) -> list[str]:
    rows = [
        [r["model"], str(r["size"]), f"{r['ratio']:.2f}", "{:.2f} to {:.2f}".format(*r["quartiles"])] for r in found
    ]
    title = "### A step with channels-last images and weights against the usual layout"
    return [title, "", *_table(["model", "px", "time", "middle half"], rows)]


def _allocator(found: list[dict[str, Any]]) -> list[str]:
    rows = [[r["model"], str(r["size"]), str(r["batch"]), f"{r['ratio']:.2f}"] for r in found]
    title = "### A forward pass with glibc's default allocator against one that keeps freed memory"
    return [title, "", *_table(["model", "px", "batch", "time"], rows)]


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
