"""Look into a finished run: how alike student and teacher are, what the student confuses, and why."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from crossdistill.backbones import Backbone, load_backbone
from crossdistill.config import RunConfig
from crossdistill.config.code import check_named_code, code_of
from crossdistill.data import ImageData, Images
from crossdistill.data.classes import has_classes_of, match_classes
from crossdistill.data.transforms import eval_transform
from crossdistill.errors import UserError
from crossdistill.evaluation.cka import CKA, LEAST
from crossdistill.evaluation.evidence import class_evidence
from crossdistill.export.agreement import evenly
from crossdistill.files import write_whole
from crossdistill.image_size import written
from crossdistill.methods import choose_method, options_for
from crossdistill.progress import Tracked
from crossdistill.report.inspection import INSPECTION_NAME, Inspection, Robustness, read_inspection
from crossdistill.report.page import write_run_page
from crossdistill.teacher import Teacher, make_teacher
from crossdistill.training.engine import choose_device, set_threads
from crossdistill.training.inputs import own_size, report_data
from crossdistill.training.inspected import Evidence, Seen, confusions, neighbours
from crossdistill.training.models import initial_models
from crossdistill.training.robustness import RobustnessScorer, load_others
from crossdistill.training.run_folder import check_writable, read_config
from crossdistill.training.score import data_of_run, without_trained
from crossdistill.types import BackboneOutput

MOST_IMAGES = 512
"""Test images that are looked at, unless another number is given."""
_BATCH = 64
_COMPARED = 10
"""Nearest images that are compared."""


@dataclass
class _Models:
    student: Backbone
    before: Backbone
    teacher: Teacher | None
    transform: Callable[..., Any]
    teacher_transform: Callable[..., Any]
    device: torch.device
    teaches_classes: bool

    def classifiers(self) -> dict[str, tuple[Backbone | Teacher, Callable[..., Any]]]:
        """Return the models whose classes are those of the data, each with the transform of its images."""
        found: dict[str, tuple[Backbone | Teacher, Callable[..., Any]]] = {"student": (self.student, self.transform)}
        if self.teaches_classes and self.teacher is not None:
            found["teacher"] = (self.teacher, self.teacher_transform)
        return found


def inspect_run(
    run: str, config: RunConfig, console: Console, *, images: int, corruptions: bool = False, ood: str | None = None
) -> Inspection:
    """Compare student, untrained student and teacher on test images; write what is found, and the run's page.

    `images` is the largest number of test images. With `corruptions` student and teacher are scored on corrupted
    images as well; `ood` is a folder of images of no class, which they have to tell from those of the test split.
    Raises UserError, among others where the data is gone.
    """
    folder = Path(run)
    check_writable(folder)
    set_threads(config.engine)
    student = load_backbone(run, trust_code=config.trust_code)
    data, known = data_of_run(run, config, student.spec.in_chans)
    report_data(data, console)
    classified = data.labelled and bool(student.spec.num_classes)
    if classified:
        match_classes(student, run, data)
    elif corruptions or ood is not None:
        raise UserError("--corruptions and --ood need a student with a classifier, and images with labels")
    others = None if ood is None else load_others(ood, config, data.channels, console)
    chosen = evenly(data.test if known is None else without_trained(data.test, known, run, console), images)
    if len(chosen) < LEAST:
        raise UserError(f"{len(chosen)} test images are too few to inspect; at least {LEAST} are needed")
    models = _load(folder, config, student, data)
    found, seen = _inspect(models, chosen, data, console)
    if classified:
        _add_classes(found, models, seen, chosen, data)
    if corruptions or others is not None:
        found["robustness"] = _robustness(models, seen, chosen, data, config, console, corruptions, others)
    else:
        _keep_robustness(found, folder)
    write_whole(folder / INSPECTION_NAME, json.dumps(found))
    write_run_page(folder)
    return found


def _keep_robustness(found: Inspection, folder: Path) -> None:
    """Keep what an earlier inspection of as many images has measured, and this one was not asked for."""
    with suppress(UserError):
        before = read_inspection(folder)
        if before is not None and "robustness" in before and before["images"] == found["images"]:
            found["robustness"] = before["robustness"]


def _inspect(models: _Models, images: Images, data: ImageData, console: Console) -> tuple[Inspection, dict[str, Seen]]:
    """Compare the layers and embeddings of the models; returns also what they returned for all images."""
    seen, alignment = _run(models, images, console)
    found: Inspection = {
        "images": len(images),
        "confusions": [],
        "neighbours": neighbours(seen, images, data.class_names),
    }
    if alignment is not None:
        found["alignment"] = {"before": _matrix(alignment[0]), "after": _matrix(alignment[1])}
    # Of few images the nearest are nearly all of the others, for any two models.
    if "teacher" in seen and len(images) >= 10 * _COMPARED:
        own, theirs = (seen[name].nearest(_COMPARED) for name in ("student", "teacher"))
        shared = [len(set(a) & set(b)) / len(a) for a, b in zip(own, theirs, strict=True)]
        found["shared_neighbours"] = 100 * float(np.mean(shared))
    return found, seen


def _add_classes(found: Inspection, models: _Models, seen: dict[str, Seen], images: Images, data: ImageData) -> None:
    """Add what the models predict: how far they agree, and what the student confuses."""
    labels = np.asarray(images.labels)
    if models.teaches_classes:
        right = seen["student"].classes == labels, seen["teacher"].classes == labels
        found["agreement"] = {
            "same": 100 * float((seen["student"].classes == seen["teacher"].classes).mean()),
            "both_right": 100 * float((right[0] & right[1]).mean()),
            "student_only": 100 * float((right[0] & ~right[1]).mean()),
            "teacher_only": 100 * float((~right[0] & right[1]).mean()),
            "both_wrong": 100 * float((~right[0] & ~right[1]).mean()),
        }
    found["confusions"] = confusions(seen, images, labels, data.class_names, _evidence(models))


def _robustness(
    models: _Models,
    seen: dict[str, Seen],
    images: Images,
    data: ImageData,
    config: RunConfig,
    console: Console,
    corruptions: bool,
    others: Sequence[Images] | None,
) -> dict[str, Robustness]:
    """Score the models on corrupted images, and by how they tell others from their own."""
    found: dict[str, Robustness] = {}
    for name, (model, transform) in models.classifiers().items():
        # Both models take images with the normalisation of the student; the teacher converts them.
        spec, device = models.student.spec, models.device
        scorer = RobustnessScorer(model, transform, spec, config.loader, device, console, f"{name}, ")
        right = seen[name].classes == np.asarray(images.labels)
        found[name] = {"img_size": str(written(model.img_size)), "clean": 100 * float(right.mean())}
        if corruptions:
            found[name]["corrupted"] = scorer.corrupted(images, data.num_classes)
        if others is not None:
            found[name]["ood"] = scorer.told_apart(images, others)
    return found


def _load(folder: Path, config: RunConfig, student: Backbone, data: ImageData) -> _Models:
    stored = read_config(folder)
    check_named_code(code_of(stored), str(folder / "config.yaml"), code_of(config), trust=config.trust_code)
    choice = choose_method(stored.method, options_for(stored.method, stored.options))
    before, teachers = initial_models(stored, choice.needs, data)
    teacher = make_teacher(teachers, before, stored.teacher_weights)
    device = choose_device(config.engine)
    for model in (student, before, *(() if teacher is None else (teacher,))):
        model.to(device).eval()
    transform = eval_transform(config.augment, student.spec, student.img_size)
    size = own_size(config.augment, teacher)
    seen = transform if size is None else eval_transform(config.augment, student.spec, size)
    knows = teacher is not None and has_classes_of(data, [teacher.backbone, *(m.backbone for m in teacher.members)])
    return _Models(student, before, teacher, transform, seen, device, knows)


@torch.inference_mode()
def _run(models: _Models, images: Images, console: Console) -> tuple[dict[str, Seen], tuple[CKA, CKA] | None]:
    """Run all models on all images. The alignments are None where the stages of one cannot be read."""
    seen = {"student": Seen()} | ({} if models.teacher is None else {"teacher": Seen()})
    aligned = models.teacher is not None and len(models.teacher.members) == 1
    aligned = aligned and models.student.stage_problem is None
    aligned = aligned and models.teacher is not None and models.teacher.backbone.stage_problem is None
    before, after = CKA(), CKA()
    starts = range(0, len(images), _BATCH)
    for start in Tracked(starts, console, "batches of test images"):
        pictures = [images.read(i) for i in range(start, min(start + _BATCH, len(images)))]
        batch = torch.stack([models.transform(one) for one in pictures]).to(models.device)
        output = models.student(batch, stages=aligned)
        seen["student"].add(output)
        if models.teacher is None:
            continue
        views = batch
        if models.teacher_transform is not models.transform:
            views = torch.stack([models.teacher_transform(one) for one in pictures]).to(models.device)
        taught = models.teacher(views, stages=aligned)
        seen["teacher"].add(taught)
        if aligned and len(pictures) >= LEAST:
            after.add(_layers(taught), _layers(output))
            before.add(_layers(taught), _layers(models.before(batch, stages=True)))
    return seen, (before, after) if aligned else None


def _layers(output: BackboneOutput) -> list[Tensor]:
    return [*output.require_stages(), output.embedding]


def _matrix(cka: CKA) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in cka.compute().numpy()]


def _evidence(models: _Models) -> dict[str, Evidence]:
    def of(model: Backbone | Teacher, transform: Callable[..., Any]) -> Evidence:
        return lambda image, number: class_evidence(model, transform(image).to(models.device), number)

    return {name: of(model, transform) for name, (model, transform) in models.classifiers().items()}
