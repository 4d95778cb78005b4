"""A student, a method and a teacher as one module that any training loop can use."""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.backbones import Backbone
from crossdistill.errors import UserError
from crossdistill.methods import create_method, find_method
from crossdistill.methods.base import Method
from crossdistill.teacher import Teacher, TeacherGroup, make_teacher
from crossdistill.types import BackboneOutput, StepResult


class Distiller(nn.Module):
    """Task loss plus the method's weighted terms.

    `parameters()` are exactly what trains: the student and the method's training-only parts. The
    teacher moves with `.to()` but is no submodule: it is in no `state_dict`, no optimiser and no
    DDP bucket, and `.train()` does not reach it.
    """

    def __init__(
        self,
        student: Backbone,
        method: Method,
        teacher: Teacher | TeacherGroup | None = None,
        *,
        task_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.task_weight = task_weight
        self.label_smoothing = label_smoothing
        self._guests = (teacher,)

    @property
    def teacher(self) -> Teacher | TeacherGroup | None:
        """The frozen teacher, or group of them; None for a method without one."""
        return self._guests[0]

    def release_teacher(self) -> None:
        """Let the teacher go: from now on every step is given its stored output.

        The method keeps what it runs of it itself (FBT: last stage and head); the rest of the teacher's
        weights may be freed, so it cannot be used elsewhere afterwards.
        """
        self.method.release_teacher()
        self._guests = (None,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the student's architecture keeps free of weight decay (asked by timm.optim)."""
        return {f"student.{name}" for name in self.student.no_weight_decay()}

    def forward(self, images: Tensor, targets: Tensor, teacher_output: BackboneOutput | None = None) -> StepResult:
        """Run one step.

        `images` (B, C, H, W), normalised for the student; `targets` (B,) class numbers or (B, K)
        probabilities (label smoothing is applied to class numbers only: soft targets come as
        meant). With `teacher_output` the teacher is not run.
        """
        method = self.method
        output: BackboneOutput = self.student(images, stages=method.student_stages)
        if not method.uses_teacher:
            teacher_output = None
        elif teacher_output is None:
            if self.teacher is None:
                raise ValueError("this distiller was made without a teacher; pass teacher_output")
            teacher_output = self.teacher(images, stages=bool(method.teacher_stages))
        smoothing = self.label_smoothing if targets.ndim == 1 else 0.0
        task = F.cross_entropy(output.logits.float(), targets, label_smoothing=smoothing)
        terms = {"task": task, **method(output, teacher_output, targets)}
        loss = self.task_weight * task
        for name, weight in method.weights.items():
            loss = loss + weight * terms[name]
        return StepResult(loss=loss, logits=output.logits, terms=terms)


def create_distiller(
    method: str,
    *,
    student: Backbone,
    teacher: Backbone | Sequence[Backbone] | None = None,
    teacher_weights: Sequence[float] | str | None = None,
    task_weight: float = 1.0,
    label_smoothing: float = 0.0,
    **options: Any,
) -> Distiller:
    """Build a distiller for a student and its teacher, or several.

    `method` is a name of `list_methods()` or "package.module:Class"; `options` are that method's
    (see `crossdistill methods NAME`). Teachers are frozen in place; of several, `teacher_weights` says
    how they are mixed (`TeacherGroup`). Raises UserError for an unknown method or option, a missing
    teacher, or models whose classes or channels differ.
    """
    teachers = [] if teacher is None else [teacher] if isinstance(teacher, Backbone | nn.Module) else list(teacher)
    for role, model in (("student", student), *(("teacher", model) for model in teachers)):
        if not isinstance(model, Backbone):
            raise UserError(f"{role} is a {type(model).__name__}; build it with create_backbone")
    if any(model is student for model in teachers):
        raise UserError(
            "teacher and student are the same object; copy.deepcopy one of them to distil a model into itself"
        )
    if not any(p.requires_grad for p in student.parameters()):
        raise UserError("no parameter of the student asks for a gradient; was it a teacher before?")
    for model in teachers:
        check_pair(student, model)
    guest = make_teacher(teachers, student.spec, teacher_weights) if find_method(method).uses_teacher else None
    built = create_method(method, student.spec, None if guest is None else guest.spec, options)
    if isinstance(guest, TeacherGroup) and built.one_teacher:
        raise UserError(f"method {method!r} with these options takes one teacher, {len(teachers)} were given")
    built.bind(student, teachers[0] if guest is not None else None)
    if built.student_stages:
        student.require_stages()
    if built.teacher_stages:
        teachers[0].require_stages()
    return Distiller(student, built, guest, task_weight=task_weight, label_smoothing=label_smoothing)


def check_pair(student: Backbone, teacher: Backbone) -> None:
    """Refuse two backbones that cannot look at the same images and classes. Raises UserError."""
    ours, theirs = student.spec, teacher.spec
    if ours.num_classes != theirs.num_classes:
        raise UserError(
            f"the teacher gives {theirs.num_classes} classes, the student {ours.num_classes}: fine-tune the teacher on "
            "the student's classes first (`crossdistill teacher`)"
        )
    if ours.in_chans != theirs.in_chans:
        raise UserError(
            f"the teacher takes {theirs.in_chans} input channels, the student {ours.in_chans}; build both with "
            "the same in_chans"
        )
