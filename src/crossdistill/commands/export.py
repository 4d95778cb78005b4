"""`crossdistill export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crossdistill.commands._parser import check_positive
from crossdistill.commands._run import RunParser
from crossdistill.commands._show import consoles
from crossdistill.commands.evaluate import LAYOUT, run_settings
from crossdistill.errors import UserError
from crossdistill.files import missing_of_run
from crossdistill.report.records import CONFIG_NAME, METRICS_NAME

if TYPE_CHECKING:
    from crossdistill.report.tables import TextTable
    from crossdistill.training.ship import Report

ABOUT = "Write a finished run's student as ONNX, torch.export or a timm folder, checked against PyTorch."
_LOADER = ("val_fraction", "split_seed", "max_train", "root", *LAYOUT)
_READS = ["data", "trust_code", "out", "engine.threads", *(f"loader.{name}" for name in _LOADER)]


def run(argv: Sequence[str]) -> int:
    """Export a run."""
    parser = _parser()
    _, made = parser.read_run(argv, again=True)
    check_positive(made, ("calibration", "images"))
    for name in (CONFIG_NAME, METRICS_NAME):
        if not (Path(made.exported) / name).is_file():
            raise missing_of_run(made.exported, name)
    config, made = _parser().read_run(argv, run_settings(made.exported, parser.given(argv)))
    from crossdistill.export.hub import check_name, push, uploads
    from crossdistill.report.tables import show
    from crossdistill.training.ship import Plan, export_run

    out = Path(config.out) if config.out else Path(made.exported) / "export" / made.to
    plan = Plan(
        target=made.to,
        out=out,
        input=made.input,
        int8=made.int8,
        latency=made.latency,
        images=made.images,
        calibration=made.calibration,
    )
    if made.push_to_hub is not None:
        check_name(made.push_to_hub)
    elif made.dry_run:
        raise UserError("--dry-run lists what --push-to-hub NAME would upload; give that as well")
    result, progress = consoles()
    report = export_run(made.exported, config, plan, progress)
    plain: dict[str, Any] = dict(soft_wrap=True, highlight=False, markup=False)
    for line in _lines(report):
        result.print(line, **plain)
    show(_agreement_table(report), result)
    if report.latency:
        show(_latency_table(report), result)
    result.print(f"export: {out}", **plain)
    if made.push_to_hub is not None and made.dry_run:
        lines = [f"{size:>12,} bytes  {name}" for name, size in uploads(out)]
        result.print(f"would be uploaded to {made.push_to_hub}:", *lines, sep="\n", **plain)
    elif made.push_to_hub is not None:
        result.print(f"uploaded: {push(out, made.push_to_hub, public=made.public)}", **plain)
    return 0


def _parser() -> RunParser:
    parser = RunParser("export", ABOUT, reads=_READS)
    add = parser.add_argument
    add("exported", metavar="RUN", type=str, help="Folder of a finished run. --out is the folder to write.")
    add("--to", type=Literal["onnx", "torch-export", "timm"], required=True, help="The form of the export.")
    add(
        "--input",
        type=Literal["tensor", "image"],
        default="tensor",
        help="Input of the ONNX graph: preprocessed tensors, or images as bytes (batch, height, width, channels) of "
        "any size, which the graph resizes and normalises.",
    )
    add("--int8", action="store_true", help="Also write the ONNX file with 8-bit weights and activations.")
    add("--calibration", type=int, default=256, help="Most validation images to calibrate --int8 on.")
    add("--images", type=int | None, default=2000, help="Most test images to check on; null for all.")
    add("--latency", action="store_true", help="Time teacher, student and export on this machine, at batch 1 and 32.")
    add("--push_to_hub", metavar="NAME", type=str | None, default=None, help="Upload the folder as this repository.")
    add("--public", action="store_true", help="Make a new repository public; it is private without this.")
    add("--dry_run", action="store_true", help="List what --push-to-hub would upload, without a network.")
    return parser


def _lines(report: "Report") -> list[str]:
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    lines = [f"checked on {report.images}", f"machine: {machine}", *report.notes]
    return [*lines, f"int8 calibrated on {report.calibration}"] if report.calibration else lines


def _agreement_table(report: "Report") -> "TextTable":
    from crossdistill.report.tables import TextTable

    before = report.agreement["PyTorch"].top1
    rows = []
    for name, found in report.agreement.items():
        change = "" if found.top1 is None or before is None else f"{found.top1 - before:+.2f}"
        numbers = ["-" if value is None else f"{value:.2f}" for value in (found.top1, found.same)]
        rows.append([name, f"{found.difference:.2g}", numbers[0], change, numbers[1]])
    header = ["form", f"largest difference ({report.difference_of})", "top-1, %", "change", "same class, %"]
    sizes = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in report.bytes.items())
    return TextTable("", header, rows, note=sizes)


def _latency_table(report: "Report") -> "TextTable":
    from crossdistill.report.tables import TextTable

    sizes = list(next(iter(report.latency.values())))
    header = ["ms a batch (median)", *(f"batch {size}" for size in sizes)]
    rows = [[name, *(f"{times[size]:.2f}" for size in sizes)] for name, times in report.latency.items()]
    return TextTable("", header, rows)
