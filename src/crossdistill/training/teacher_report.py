"""What is said about the teachers of a run before training, and which of them are refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from crossdistill.backbones import Backbone
from crossdistill.config import RunConfig
from crossdistill.data import ImageData
from crossdistill.data.classes import has_classes_of
from crossdistill.data.trained import read_trained
from crossdistill.data.views import sample_loader
from crossdistill.distiller import Distiller
from crossdistill.evaluation.finite_teacher import check_finite
from crossdistill.evaluation.teacher_check import check_teacher
from crossdistill.image_size import written
from crossdistill.progress import Tracked
from crossdistill.teacher import Teacher
from crossdistill.training.weights import file_note, has_weights, random_weights_error


def report_teachers(
    config: RunConfig, data: ImageData, distiller: Distiller, device: torch.device, console: Console
) -> None:
    """Print what is known of the teachers, and how accurate they are on some held-out images.

    Raises UserError, with the cause, for one near chance, and in any case for one whose output for the first batch is
    not finite.
    """
    if distiller.teacher is None:
        return
    _report_trained_on(config, data, console)
    members = distiller.teacher.members
    for number, (member, source) in enumerate(zip(members, config.teachers, strict=True), 1):
        name = f"{number} ({member.spec.name})" if len(members) > 1 else member.spec.name
        _TeacherReport(config, data, distiller, device, console, name).report(member, *source)


@dataclass(frozen=True)
class _TeacherReport:
    """What is said about one teacher of a run, under the name that it is called."""

    config: RunConfig
    data: ImageData
    distiller: Distiller
    device: torch.device
    console: Console
    name: str

    def report(self, teacher: Teacher, source: str | None, checkpoint: str | None) -> None:
        """Report on the teacher, built from `source` (its name) and `checkpoint`. Raises UserError."""
        config, student = self.config, self.distiller.student
        weighted = has_weights(source, checkpoint, pretrained=config.model.teacher_pretrained)
        scored = self.data.labelled and has_classes_of(self.data, [teacher.backbone])
        if not (scored or weighted or config.trust_teacher):
            raise random_weights_error(teacher.spec.name)
        own = config.augment.teacher_view == "own"
        size = teacher.backbone.img_size if own else student.img_size
        loader = sample_loader(self.data.val, self.data.num_classes, config.augment, student.spec, size, config.loader)
        check_finite(teacher.to(self.device), next(iter(loader))[0])
        stem = config.model.teacher_stem or config.model.stem
        for note in (_size_note(teacher.backbone, student, own=own), *_notes(teacher.backbone, checkpoint, stem)):
            if note:
                self._say(note)
        if scored:
            self._accuracy(teacher, loader, weighted=weighted)
        elif self.data.labelled:
            classes = teacher.spec.num_classes
            kind = f"its {classes} classes are not those of the data" if classes else "it has no classifier"
            self._say(f"its accuracy is not known: {kind}")

    def _accuracy(self, teacher: Teacher, loader: DataLoader[Any], *, weighted: bool) -> None:
        found = check_teacher(
            teacher,
            Tracked(loader, self.console, f"teacher {self.name} on held-out images"),
            class_names=self.data.class_names,
            trust=self.config.trust_teacher,
            # Without weights, a teacher without its classifier is random as well.
            reads_logits=self.distiller.needs.teacher.logits or not weighted,
            name=self.name,
        )
        for line in (f"{100 * found.accuracy:.1f}% on held-out images", *(f"note: {note}" for note in found.notes)):
            self._say(line)

    def _say(self, text: str) -> None:
        self.console.print(f"teacher {self.name}: {text}", highlight=False, markup=False, soft_wrap=True)


def _size_note(teacher: Backbone, student: Backbone, *, own: bool) -> str:
    """Say at which size a teacher sees the images, where that is not the student's."""
    if teacher.img_size == student.img_size:
        return ""
    source = "made from the image" if own else f"resized from the student's {written(student.img_size)} px"
    return f"its input is {written(teacher.img_size)} px, {source}"


def _notes(teacher: Backbone, weights: str | None, stem: str) -> list[str]:
    """Say what is known of a teacher's weights, and what was assumed where they do not state it."""
    notes = [file_note(weights, stem, teacher.img_size), teacher.note]
    if weights is not None and not Path(weights).is_dir():
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (teacher.spec.mean, teacher.spec.std))
        notes.append(f"its input has mean ({mean}) and std ({std}), those of the name {teacher.spec.name!r}")
    if teacher.weights_part:
        notes.append(f"the weights are those under {teacher.weights_part!r} in its checkpoint")
    return notes


def _report_trained_on(config: RunConfig, data: ImageData, console: Console) -> None:
    """Say which held-out images a teacher's own run has trained on: its scores on them are too good."""
    for _, checkpoint in config.teachers:
        if checkpoint is None or not Path(checkpoint).is_dir():
            continue
        known = read_trained(checkpoint)
        seen = {name: known.find(getattr(data, name)) for name in ("val", "test")}
        for name, numbers in seen.items():
            if numbers:
                text = f"note: the teacher {checkpoint!r} has trained on {len(numbers):,} of the {name} images"
                console.print(text, highlight=False, markup=False, soft_wrap=True)
