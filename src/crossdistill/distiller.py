"""A student, a method and a teacher as one module that any training loop can use."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crossdistill.backbones import Backbone
from crossdistill.backbones.tail import Tail
from crossdistill.balance import make_balance, watch_classifier, watch_method, watch_task
from crossdistill.config import OptimConfig
from crossdistill.errors import UserError
from crossdistill.methods import NONE, MethodChoice, choose_method
from crossdistill.methods.base import Method
from crossdistill.methods.sums import SumOfMethods
from crossdistill.tasks import Classification, NoLabels, Task
from crossdistill.teacher import Teacher, TeacherWeights, make_teacher
from crossdistill.types import BackboneOutput, Needs, StepResult


class Distiller(nn.Module):
    """Task loss plus the method's weighted terms.

    `parameters()` are exactly what is trained: the student and the method's training-only parts. The teacher moves with
    `.to()` but is not a submodule: it is in no `state_dict`, no optimiser and no DDP bucket, and `.train()` does not
    reach it. Without a method it is plain training.
    """

    def __init__(
        self,
        student: Backbone,
        method: Method | None = None,
        teacher: Teacher | None = None,
        *,
        task: Task | None = None,
        task_weight: float = 1.0,
        balance: float | Literal["auto"] | None = "auto",
    ) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.task = task or Classification()
        self.task_weight = task_weight
        self.needs = Needs() if method is None else method.needs
        """What is read of the student's and of the teacher's output."""
        for taken in {"task", "loss"} & set(self.weights):
            raise UserError(f"the method has a term {taken!r}, a name that the log uses for another value; rename it")
        weight = self.task_weight if self.task.labelled else 0.0
        self.balance = None if method is None else make_balance(balance, student, method, weight)
        # Inside a tuple it is not registered as a submodule.
        self._teacher = (teacher,)

    @property
    def teacher(self) -> Teacher | None:
        """The frozen teacher; None where the method needs none, or after `release_teacher`."""
        return self._teacher[0]

    @property
    def borrowed(self) -> tuple[Tail, ...]:
        """Parts of the student and the teacher that the method runs itself."""
        return () if self.method is None else self.method.borrowed

    @property
    def weights(self) -> dict[str, float]:
        """Factors of the method's terms, by name."""
        return {} if self.method is None else self.method.weights

    def release_teacher(self) -> None:
        """Free the teacher; every later step needs its stored output.

        Parts that the method has borrowed stay. The other weights of the teacher are freed, so it cannot be used
        elsewhere afterwards.
        """
        for tail in self.borrowed:
            if self.teacher is not None and tail.backbone is self.teacher.backbone:
                tail.release_front()
        self._teacher = (None,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.teacher is not None:
            self.teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for tail in self.borrowed:
            tail.apply(fn)
        return self

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that the student's architecture excludes from weight decay, for timm.optim."""
        return {f"student.{name}" for name in self.student.no_weight_decay()}

    def forward(
        self,
        images: Tensor,
        targets: Tensor | None,
        teacher_output: BackboneOutput | None = None,
        index: Tensor | None = None,
        teacher_images: Tensor | None = None,
    ) -> StepResult:
        """Run one step.

        `images` (B, C, H, W), normalised for the student; `targets` (B,) class numbers (-1 for an image with no label)
        or (B, K) probabilities, None where there are no labels. With `teacher_output`, of any float dtype, the teacher
        is not run. `index` (B,) holds the number of each image in the training set, for methods that need it.
        `teacher_images` (B, C, H', W'), normalised for the student, are what the teacher sees where that is not
        `images`. The terms are for logs: a loss of one's own that adds them changes what the balance measures, so build
        it with `balance=None`. Raises ValueError where the teacher was released and no output is given, and for targets
        or an `index` that are needed and missing.
        """
        if targets is None and self.task.labelled:
            raise ValueError("targets is None, but the task learns from labels; with labelled=False it does not")
        if targets is not None and not targets.is_floating_point():
            targets = targets.long()
        # Outside of what is compiled: the probe is a leaf whose gradient is read after the backward pass.
        measured = None if self.balance is None or not self.training else self.balance.begin()
        if self.teacher is not None:
            self.teacher.stay_frozen()
        seen = images if teacher_images is None else teacher_images
        return self._step(images, targets, teacher_output, index, measured, seen)

    def balance_factors(self) -> dict[str, float]:
        """Return the factor of each method that the balance has measured so far; nothing without a balance."""
        if self.balance is None or self.method is None:
            return {}
        names = [group.method.lower() for group in self.method.groups()]
        return dict(zip(names, self.balance.factors().tolist(), strict=True))

    def balanced_weights(self) -> list[str]:
        """Return the methods whose weight was changed from its default, but is replaced by a measured factor."""
        if self.balance is None or self.method is None:
            return []
        parts = list(self.method.parts.values()) if isinstance(self.method, SumOfMethods) else [self.method]
        changed = []
        for part, group, target in zip(parts, self.method.groups(), self.balance.targets.tolist(), strict=True):
            default = getattr(getattr(part, "Options", None), "weight", None)
            own = getattr(getattr(part, "options", None), "weight", None)
            if target and len(group.terms) == 1 and own is not None and own != default:
                changed.append(group.method.lower())
        return changed

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the step with torch.compile: student, teacher and method as one graph."""
        self._step = torch.compile(self._step, *args, **kwargs)  # type: ignore[method-assign]

    def _step(
        self,
        images: Tensor,
        targets: Any,
        stored: BackboneOutput | None,
        index: Tensor | None,
        measured: tuple[Tensor, Tensor] | None,
        seen: Tensor,
    ) -> StepResult:
        probe, factors = (None, None) if measured is None else measured
        student = self._run_student(images, probe)
        terms = {"task": self.task.loss(student if probe is None else watch_task(student, probe), targets)}
        loss = self.task_weight * terms["task"]
        if self.method is not None:
            teacher = self._run_teacher(seen, stored) if self.needs.teacher else None
            terms |= self._run_method(self.method, student, teacher, targets, index, probe)
            if factors is None and self.balance is not None:
                factors = self.balance.factors()
            for number, group in enumerate(self.method.groups()):
                factor = 1.0 if factors is None else factors[number]
                for name in group.terms:
                    loss = loss + factor * self.weights[name] * terms[name]
        return StepResult(loss=loss, logits=student.logits, terms=terms)

    def _run_student(self, images: Tensor, probe: Tensor | None) -> BackboneOutput:
        stages = bool(self.needs.student.stages)
        if probe is None:
            plain: BackboneOutput = self.student(images, stages=stages)
            return plain
        self.student.before_classifier = partial(watch_classifier, probe=probe, column=0)
        try:
            output: BackboneOutput = self.student(images, stages=stages)
        finally:
            self.student.before_classifier = None
        return output._replace(logits=watch_classifier(output.require_logits(), probe, 1))

    def _run_method(
        self,
        method: Method,
        student: BackboneOutput,
        teacher: BackboneOutput | None,
        targets: Any,
        index: Tensor | None,
        probe: Tensor | None,
    ) -> dict[str, Tensor]:
        extra: dict[str, Any] = self._extra(index)
        if probe is not None and isinstance(method, SumOfMethods):
            extra["watch"] = partial(watch_method, probe=probe)
        elif probe is not None:
            student = watch_method(student, 0, probe=probe)
        own: dict[str, Tensor] = method(student, teacher, targets, **extra)
        if own.keys() != self.weights.keys():
            raise ValueError(
                f"the method returned the terms {sorted(own)}, but its weights name {sorted(self.weights)}; both "
                "must have the same names"
            )
        return own

    def _extra(self, index: Tensor | None) -> dict[str, Tensor]:
        if not self.needs.index:
            return {}
        if index is None:
            raise ValueError("this method needs the numbers of the images in the training set; pass index")
        return {"index": index}

    def _run_teacher(self, images: Tensor, stored: BackboneOutput | None) -> BackboneOutput:
        if stored is not None:
            dtype = next(self.student.parameters()).dtype
            # The caller may have made it with gradients; nothing trains the teacher.
            return stored.map(lambda tensor: tensor.detach().to(dtype))
        if self.teacher is None:
            raise ValueError("this distiller has no teacher; pass teacher_output")
        output: BackboneOutput = self.teacher(images, stages=bool(self.needs.teacher.stages))
        return output


def create_distiller(
    method: str | MethodChoice,
    *,
    student: Backbone,
    teacher: Backbone | Sequence[Backbone] | None = None,
    options: Any = None,
    teacher_weights: TeacherWeights = None,
    task_weight: float = 1.0,
    label_smoothing: float = 0.0,
    balance: float | Literal["auto"] | None = "auto",
    labelled: bool = True,
    partly: bool = False,
) -> Distiller:
    """Build a distiller for a student and its teacher, or several teachers.

    `method` is a name of `list_methods()`, "package.module:Class", or a sum of these as "rsd+kd"; `options` are that
    method's, as a dict or as its options object (see `crossdistill methods NAME`), and of a sum a dict of these by
    method. (A `MethodChoice` stands for both.) Teachers are frozen in place; `teacher_weights` says how several are
    mixed (`Ensemble`). `task_weight` (>= 0) and `label_smoothing` (in [0, 1)) belong to the task loss. `balance` > 0
    gives each method a factor such that its gradient on the student's embedding and logits is that many times the
    task's; "auto" does so for the methods that have a default for it (`rsd` and `crd`), and None for none. With
    `labelled` False there is no task loss, and the student may have no classifier; with `partly`, images whose target
    is -1 have no task loss. Raises UserError for an unknown method or option, a missing teacher, or models that do not
    fit together.
    """
    teachers = [] if teacher is None else [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    _check_models(student, teachers, labelled)
    OptimConfig(task_weight=task_weight, label_smoothing=label_smoothing, balance=balance)
    choice = method if isinstance(method, MethodChoice) else choose_method(method, options)
    frozen = make_teacher(teachers, student, teacher_weights) if choice.needs.teacher else None
    built = choice.build(student, None if frozen is None else frozen.backbone)
    if not labelled and (built is None or built.needs.labels):
        raise UserError(f"method {_name(choice)!r} learns from labels, but there are none; use one that reads none")
    if partly and built is not None and built.needs.labels:
        raise UserError(f"method {_name(choice)!r} reads the label of every image, but some have none")
    if not labelled and balance not in (None, "auto"):
        raise UserError("balance compares each method with the task's loss, but without labels there is none")
    task = Classification(label_smoothing, partly=partly) if labelled else NoLabels()
    return Distiller(student, built, frozen, task=task, task_weight=task_weight, balance=balance)


def _name(choice: MethodChoice) -> str:
    return "+".join(part.name for part in choice.parts) or NONE


def _check_models(student: Backbone, teachers: Sequence[Backbone], labelled: bool) -> None:
    """Raise UserError for what is not a backbone, and for a student that cannot train or cannot share the images."""
    for role, model in (("student", student), *(("teacher", model) for model in teachers)):
        if not isinstance(model, Backbone):
            raise UserError(f"{role} is a {type(model).__name__}; build it with create_backbone")
    if labelled and student.spec.num_classes == 0:
        raise UserError("the student has no classifier, so there are no logits to train; build it with num_classes")
    if any(model is student for model in teachers):
        raise UserError(
            "teacher and student are the same object; copy.deepcopy one of them to distil a model into itself"
        )
    if not any(p.requires_grad for p in student.parameters()):
        raise UserError("no parameter of the student requires a gradient; was it used as a teacher before?")
    for model in teachers:
        ours, theirs = student.spec.in_chans, model.spec.in_chans
        if ours != theirs:
            raise UserError(
                f"the teacher has {theirs} input channels and the student {ours}; build both with the same in_chans "
                f"(--loader.in-chans {theirs} reads the images so)"
            )
