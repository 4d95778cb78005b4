"""A model card: what an exported student was made from, how good it is, and how to load it."""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crossdistill.backbones.small_stem import SMALL_STEM
from crossdistill.config.files import read_yaml
from crossdistill.data.preprocessing import Preprocessing
from crossdistill.errors import UserError
from crossdistill.export.about import PROGRAM_FILE
from crossdistill.export.onnx_session import ONNX_FILE
from crossdistill.files import parse_json, read_plain, write_whole
from crossdistill.report.records import CONFIG_NAME, METRICS_NAME, Metrics, ScoredModel, read_record

CARD_NAME = "README.md"
_TO_FILL = "TO FILL IN"


def write_card(
    run: Path, folder: Path, class_names: Sequence[str], look: Preprocessing, report: dict[str, Any]
) -> None:
    """Write the card of an export into its folder. `report` is the content of its `export.json`."""
    metrics: Metrics = read_record(run / METRICS_NAME, Metrics)
    settings = read_yaml(run / CONFIG_NAME)
    parts = [
        _front(report["target"]),
        f"# {_plain(metrics['student']['name'])}, {_made(metrics)}",
        _origin(metrics, settings),
        _scores(run, metrics, settings),
        _checks(report),
        f"## How to load\n\n{_loading(report['target'], folder, look.input_size[0])}",
        "## Input\n\nImages are read with their EXIF orientation applied, transparent parts on white, 16-bit grey "
        f"scaled to 8 bits, then:\n\n```json\n{json.dumps(asdict(look))}\n```",
        f"## Classes\n\n{len(class_names)}, in the order of the logits:\n\n```json\n{_names(class_names)}\n```",
        _licences(metrics, settings),
        f"## Intended use and limits\n\n{_TO_FILL}",
    ]
    write_whole(folder / CARD_NAME, "\n\n".join(parts) + "\n")


def _front(target: str) -> str:
    library = {"timm": "timm", "onnx": "onnx"}.get(target, "pytorch")
    return "\n".join(
        [
            "---",
            "# The licence is to be filled in: https://hf.co/docs/hub/repositories-licenses lists the names.",
            "license: other",
            f"library_name: {library}",
            "tags:\n- image-classification\n- knowledge-distillation\n- crossdistill",
            "---",
        ]
    )


def _made(metrics: Metrics) -> str:
    taught = f"distilled with `{_plain(metrics['method'])}`" if "teacher" in metrics else "trained on labels"
    return f"{taught} on {_plain(Path(metrics['data']).name)}"


def _origin(metrics: Metrics, settings: dict[str, Any]) -> str:
    training = metrics["training"]
    lines = [f"- student: {_model(metrics['student'])}"]
    if "teacher" in metrics:
        lines.append(f"- teacher: {_model(metrics['teacher'])}")
    lines += [
        f"- method: `{_plain(metrics['method'])}`, options {json.dumps(settings.get('options') or {})}",
        f"- data: {_plain(Path(metrics['data']).name)}",
        f"- training: {training['epochs']} epochs in batches of {training['global_batch']}, seed {metrics['seed']}, "
        f"{training['seconds'] / 60:.1f} minutes",
    ]
    return "## Origin\n\n" + "\n".join(lines)


def _model(model: ScoredModel) -> str:
    size = f"{model['parameters'] / 1e6:.2f} M parameters, {model['macs'] / 1e6:.0f} MMACs at {model['img_size']} px"
    return f"{_plain(model['name'])} ({size})"


def _scores(run: Path, metrics: Metrics, settings: dict[str, Any]) -> str:
    rows = [("student", metrics["student"]), *([("teacher", metrics["teacher"])] if "teacher" in metrics else [])]
    scored = [(who, model["test"]) for who, model in rows if "test" in model]
    if not scored:
        return "## Scores\n\nNone: the images of the run have no labels."
    lines = ["| test split | top-1, % | calibration error, % | images |", "| --- | --- | --- | --- |"]
    lines += [f"| {who} | {one['top1']:.2f} | {one['ece']:.2f} | {one['images']:,} |" for who, one in scored]
    tops = _same_but_for_seed(run, settings)
    spread = "One run: the spread over seeds is not known."
    if len(tops) > 1:
        spread = (
            f"Over {len(tops)} seeds: {statistics.mean(tops):.2f} ± {statistics.stdev(tops):.2f} (sample deviation)."
        )
    return "## Scores\n\n" + "\n".join(lines) + f"\n\n{spread}"


def _same_but_for_seed(run: Path, settings: dict[str, Any]) -> list[float]:
    """Return the student's accuracy in the runs beside this one, and in it, that differ in nothing but the seed."""
    tops = []
    for folder in sorted(run.resolve().parent.iterdir()):
        if not (os.access(folder, os.X_OK) and (folder / METRICS_NAME).is_file() and (folder / CONFIG_NAME).is_file()):
            continue
        try:
            other = read_yaml(folder / CONFIG_NAME)
            metrics: Metrics = read_record(folder / METRICS_NAME, Metrics)
        except UserError:
            # A damaged run beside this one says nothing of it.
            continue
        if {**other, "seed": 0} != {**settings, "seed": 0}:
            continue
        if "test" in metrics["student"]:
            tops.append(metrics["student"]["test"]["top1"])
    return tops


def _checks(report: dict[str, Any]) -> str:
    lines = [f"| on {report['images']} | largest difference | top-1, % |", "| --- | --- | --- |"]
    for name, one in report["agreement"].items():
        lines.append(
            f"| {name} | {one['difference']:.2g} | {'-' if one['top1'] is None else format(one['top1'], '.2f')} |"
        )
    for name, times in report["latency"].items():
        lines += ["", *(f"- {name}, batch {size}: {time:.2f} ms" for size, time in times.items())]
    if report["latency"]:
        lines += ["", "Machine: " + ", ".join(f"{name} {value}" for name, value in report["machine"].items())]
    return "## This export\n\n" + "\n".join(lines)


def _loading(target: str, folder: Path, channels: int) -> str:
    if target == "onnx":
        return (
            f"```sh\npip install 'crossdistill[onnx]'\ncrossdistill predict {ONNX_FILE} photos/\n```\n\nWithout "
            f"crossdistill, `onnxruntime.InferenceSession({ONNX_FILE!r})`; its metadata `crossdistill` (JSON) states "
            "the preprocessing and the class names."
        )
    if target == "torch-export":
        return f"```python\nmodule = torch.export.load({PROGRAM_FILE!r}).module()  # images -> logits, embedding\n```"
    config = parse_json(read_plain(folder / "config.json"))
    small = config.get("architecture") == SMALL_STEM
    first = (
        "import crossdistill.backbones  # a stem for small images, which timm does not have by itself\n"
        if small
        else ""
    )
    return (
        f'```python\n{first}import timm\n\nmodel = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()\n'
        "data = timm.data.resolve_model_data_config(model)\ntransform = timm.data.create_transform(**data)  "
        f'# of image.convert("{"RGB" if channels == 3 else "L"}")\n```\n\n'
        "From a hub: `hf-hub:OWNER/NAME` instead of `local-dir:THIS_FOLDER`."
    )


def _licences(metrics: Metrics, settings: dict[str, Any]) -> str:
    lines = [
        f"- of these weights: {_TO_FILL}",
        f"- of the training images: {_TO_FILL}",
        f"- of the teacher's weights: {_TO_FILL if 'teacher' in metrics else 'there was no teacher'}",
        f"- of the student's initial weights: {_initial(settings)}",
    ]
    return "## Licences\n\n" + "\n".join(lines)


def _names(class_names: Sequence[str]) -> str:
    """Return names as JSON in ASCII, without what would end the block that they stand in."""
    return json.dumps(list(class_names), ensure_ascii=True).replace("`", "\\u0060")


def _initial(settings: dict[str, Any]) -> str:
    model = settings.get("model") or {}
    used = model.get("student_pretrained") or model.get("student_checkpoint")
    return _TO_FILL if used else "random, so none"


def _plain(text: str) -> str:
    """Return text that is no Markdown or HTML, in one line."""
    escaped = "".join("\\" + letter if letter in "\\`*[]<>|#" else letter for letter in " ".join(text.split()))
    return escaped
