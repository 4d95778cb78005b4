"""Plot the ratios."""

from pathlib import Path
from typing import Any

from benchmarks.report import target


def draw(pairs: list[dict[str, Any]], path: Path) -> None:
    """Draw one panel for each pair: the step's time on the cache and online, with floor and target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 4
    rows = -(-len(pairs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False, sharey="row")
    for axis, pair in zip(axes.flat, pairs, strict=False):
        cases = {row["case"]: row for row in pair["rows"]}
        methods = [name.removesuffix(" cached") for name in cases if name.endswith(" cached")]
        for place, method in enumerate(methods):
            for shift, how, colour in ((-0.2, "online", "#c9c9c9"), (0.2, "cached", "#3b6fb6")):
                row = cases[f"{method} {how}"]
                low, high = row["quartiles"]
                error = [[max(0, row["ratio"] - low)], [max(0, high - row["ratio"])]]
                axis.bar(place + shift, row["ratio"], 0.38, color=colour, yerr=error, ecolor="#555555", label=how)
                axis.hlines(
                    row["floor"], place + shift - 0.19, place + shift + 0.19, color="black", lw=1.5, label="floor"
                )
            if (wanted := target(method, pair["size"])) is not None:
                axis.hlines(wanted, place + 0.01, place + 0.39, color="#d1495b", lw=1.5, ls=":", label="target")
        axis.axhline(1, color="#777777", lw=0.8)
        axis.set_xticks(range(len(methods)), methods)
        axis.set_title(f"{pair['student']} <- {pair['teacher']}, {pair['size']} px", fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes.flat)[len(pairs) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("step / step of the student alone")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="upper right", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=110)
