"""The export of a finished run: written, compared with PyTorch on real images, measured, described."""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from crossdistill.backbones import load_backbone
from crossdistill.backbones.args import HUB_WEIGHTS_FILE, read_stored, weights_digest
from crossdistill.config import RunConfig
from crossdistill.data.datasets import Images
from crossdistill.data.preprocessing import Preprocessing, read_preprocessing
from crossdistill.errors import UserError
from crossdistill.export.about import PROGRAM_FILE, describe, require_packages
from crossdistill.export.agreement import Agreement, check_difference, compare, evenly
from crossdistill.export.card import write_card
from crossdistill.export.folder import REPORT_NAME, new_folder, users_files
from crossdistill.export.onnx_images import preprocessing_model, with_images
from crossdistill.export.onnx_session import INT8_FILE, ONNX_FILE, OnnxModel
from crossdistill.export.program import export_program, make_onnx, save_onnx, save_program
from crossdistill.export.quantise import quantise
from crossdistill.export.runners import ProgramModel, Runner, TimmModel, TorchModel, check_finite_weights
from crossdistill.export.timm_folder import save_student
from crossdistill.files import file_digest, write_whole
from crossdistill.training.engine import set_threads
from crossdistill.training.exported_data import HeldOut, find_held_out
from crossdistill.training.run_folder import check_writable, environment
from crossdistill.training.ship_latency import ship_latency

Target = Literal["onnx", "torch-export", "timm"]
_PIXEL_LEVELS = 0.5
"""Largest mean difference, of 255, between the pixels of an image that the graph resizes and those of Pillow."""


@dataclass(frozen=True)
class Plan:
    """What is exported, and how it is checked.

    `images` is the largest number of test images that are compared (None: all), `calibration` that of held-out images
    from which the ranges of `int8` are read.
    """

    target: Target
    out: Path
    input: Literal["tensor", "image"] = "tensor"
    int8: bool = False
    latency: bool = False
    images: int | None = 2000
    calibration: int = 256


@dataclass
class Report:
    """What was measured, as `export.json` holds it."""

    target: str
    model: str
    machine: dict[str, Any]
    images: str
    """Which images the forms were compared on."""
    difference_of: str
    """Whether differences are those of logits or of embeddings."""
    agreement: dict[str, Agreement] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    latency: dict[str, dict[str, float]] = field(default_factory=dict)
    """Milliseconds for a batch, by model and batch size."""
    calibration: str | None = None
    notes: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Digests of the files by name: an export that was changed is not replaced."""


def export_run(run: str, config: RunConfig, plan: Plan, console: Console) -> Report:
    """Export the student of a finished run into `plan.out`, and return what was measured.

    The folder is written completely or not at all. Raises UserError, among others where the export computes something
    else than the run's student.
    """
    _check_plan(plan)
    set_threads(config.engine)
    backbone = load_backbone(run, trust_code=config.trust_code).eval().requires_grad_(False)
    check_finite_weights(backbone, run)
    if plan.target == "timm" and ":" in backbone.spec.name:
        raise UserError(f"{backbone.spec.name!r} is not a model of timm; use --to onnx or --to torch-export")
    stored = read_stored(run)
    look = read_preprocessing(stored, f"{run!r}: its preprocessing cannot be read: ")
    held = find_held_out(run, config, backbone, console)
    if plan.int8 and held.calibration is None:
        raise UserError(f"--int8 needs validation images that were not trained on; there are none ({held.about})")
    report = Report(
        target=plan.target,
        model=backbone.spec.name,
        machine=_machine(),
        images="",
        difference_of="logits" if backbone.spec.num_classes else "embedding",
    )
    with new_folder(plan.out) as folder:
        student = TorchModel(backbone, look)
        forms = _write(plan, folder, student, held, report, weights_digest(run))
        _check(forms, student, held, plan, report, console)
        report.bytes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        if plan.latency:
            report.latency = ship_latency(run, config, student, forms, report.notes)
        write_card(Path(run), folder, student.class_names, look, asdict(report))
        report.files = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
        write_whole(folder / REPORT_NAME, json.dumps(asdict(report), indent=2))
    return report


def _check_plan(plan: Plan) -> None:
    if plan.target == "onnx":
        require_packages("--to onnx", "onnx", "onnxruntime", "onnxscript")
    for name, given in (("--int8", plan.int8), ("--input image", plan.input == "image")):
        if given and plan.target != "onnx":
            raise UserError(f"{name} is for --to onnx; leave it out for {plan.target}")
    if plan.out.exists() and not plan.out.is_dir():
        raise UserError(f"--out {str(plan.out)!r} is a file; give the folder to write")
    if plan.out.is_dir() and (own := users_files(plan.out)):
        raise UserError(f"--out {str(plan.out)!r} holds {own[0]!r}, which is no file of an export; choose a new folder")
    check_writable(plan.out.parent)


def _write(
    plan: Plan, folder: Path, student: TorchModel, held: HeldOut, report: Report, digest: str
) -> dict[str, Runner]:
    """Write the files of a target, and return the ways to run them."""
    backbone, look = student.backbone, student.preprocessing
    about = describe(backbone.spec.name, student.class_names, look, weights=digest)
    if plan.target == "timm":
        transform = {**asdict(look), "input_size": list(look.input_size)}
        save_student(backbone, folder, student.class_names, transform, HUB_WEIGHTS_FILE)
        return {"timm": TimmModel(folder)}
    program = export_program(backbone)
    if plan.target == "torch-export":
        save_program(program, folder / PROGRAM_FILE, about)
        return {"torch.export": ProgramModel(folder / PROGRAM_FILE, look, bool(backbone.spec.num_classes))}
    model, path, threads = make_onnx(program, backbone), folder / ONNX_FILE, torch.get_num_threads()
    save_onnx(model, path, about)
    forms: dict[str, Runner] = {"ONNX": OnnxModel(path, threads)}
    if plan.int8:
        assert held.calibration is not None
        images = evenly(held.calibration, plan.calibration)
        quantise(path, folder / INT8_FILE, _batches(images, look), about)
        report.calibration = f"{len(images)} {held.calibration_name}"
        forms["ONNX int8"] = OnnxModel(folder / INT8_FILE, threads)
    if plan.input == "image":
        _add_preprocessing(folder, look, replace(about, input="image"), forms, threads)
    return forms


def _add_preprocessing(folder: Path, look: Preprocessing, about: Any, forms: dict[str, Runner], threads: int) -> None:
    import onnx

    for file, name in ((ONNX_FILE, "ONNX"), (INT8_FILE, "ONNX int8")):
        if name in forms:
            save_onnx(with_images(onnx.load(str(folder / file)), look), folder / file, about)
            forms[f"{name}, resize in the graph"] = OnnxModel(folder / file, threads)


def _batches(images: Images, look: Preprocessing) -> Iterator[Any]:
    for number in range(len(images)):
        yield look(images.read(number))[None]


def _check(
    forms: Mapping[str, Runner], student: TorchModel, held: HeldOut, plan: Plan, report: Report, console: Console
) -> None:
    """Compare all forms on the same images. Raises UserError where one that must be equal is not."""
    images = evenly(held.images, plan.images)
    labels = None if held.labels is None else [held.labels[int(label)] for label in images.labels]
    report.images = f"{len(images):,} of {len(held.images):,} {held.about}"
    report.agreement = compare({"PyTorch": student, **forms}, "PyTorch", images, labels, console)
    exact = [name for name in forms if name in ("ONNX", "torch.export", "timm")]
    for name in exact:
        check_difference(name, report.agreement[name])
    if plan.input == "image":
        _check_pixels(images, student.preprocessing)


def _check_pixels(images: Images, look: Preprocessing) -> None:
    """Raise UserError where the graph prepares an image in another way than Pillow does."""
    import onnxruntime as ort

    graph = preprocessing_model(look, 18, 10)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    std = np.asarray(look.std, np.float32).reshape(1, -1, 1, 1)
    for number in range(0, len(images), max(1, len(images) // 16)):
        image = images.read(number)
        (found,) = session.run(None, {"image": look.pixels(image)[None]})
        off = float((np.abs(found - look(image)[None]) * std).mean()) * 255
        if off > _PIXEL_LEVELS:
            raise UserError(
                f"the graph resizes images in another way than Pillow ({off:.1f} of 255 levels); use --input tensor"
            )


def _machine() -> dict[str, Any]:
    made = environment(1, {})
    found: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    found |= {"threads": made.threads, "platform": made.platform, "python": made.python, "torch": made.torch}
    for name in ("onnx", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
