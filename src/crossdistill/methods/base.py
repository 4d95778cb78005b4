"""The base class of methods: named options, training-only parts, and a map from two outputs to named terms."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from crossdistill.backbones import Backbone
from crossdistill.backbones.tail import Tail
from crossdistill.losses.kd import standardise_logits
from crossdistill.types import Needs


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


class Method(nn.Module):
    """Base class of all methods.

    A method owns the parts that exist only in training; it is independent of the task loss and of the trainer. It is
    built from `options` (an instance of `Options`), the student and the frozen teacher (None where its needs read
    nothing of a teacher), and raises UserError for a pair that it does not support. `forward(student, teacher,
    targets)`, with `index` where it is needed, maps the two outputs to unweighted scalars by name; `weights` holds the
    factor that the distiller multiplies each with.
    """

    Options: ClassVar[type] = NoOptions
    idea: ClassVar[str] = "-"
    """One sentence for `crossdistill methods`."""
    paper: ClassVar[str] = "-"
    needs: Needs = Needs()
    """What is read of the two outputs: for the class with its default options, for an instance with its own."""
    weights: dict[str, float]
    balance: ClassVar[float | None] = None
    """Size of the method's gradient relative to the task's that `balance` "auto" uses; None keeps its weights."""
    unmeasured: frozenset[str] = frozenset()
    """Terms that do not reach the student's embedding or logits, so that the balance cannot measure them alone."""
    borrowed: tuple[Tail, ...] = ()
    """Parts of the two models that the method runs itself. They stay unregistered; the distiller moves them."""

    def __init__(self, options: Any, student: Backbone, teacher: Backbone | None) -> None:
        super().__init__()
        self.needs = self.needs_of(options, student, teacher)
        self.weights = {}

    @classmethod
    def needs_of(cls, options: Any, student: Backbone | None = None, teacher: Backbone | None = None) -> Needs:
        """Return what a method with these options reads; for a given pair it may be less than for any."""
        return cls.needs

    def groups(self) -> list["TermGroup"]:
        """Return the terms by the method that they belong to; only a sum of methods has several groups."""
        measured = tuple(name for name in self.weights if name not in self.unmeasured)
        return [TermGroup(type(self).__name__, self.needs, tuple(self.weights), measured, self.balance)]


@dataclass(frozen=True)
class TermGroup:
    """The terms of one method."""

    method: str
    needs: Needs
    terms: tuple[str, ...]
    measured: tuple[str, ...]
    """Those of the terms that reach the student's embedding or logits."""
    balance: float | None


def comparable(student: Tensor, teacher: Tensor, standardise: bool) -> tuple[Tensor, Tensor]:
    """Return the logits of both sides for a loss: as they are, or standardised over the classes."""
    return (standardise_logits(student), standardise_logits(teacher)) if standardise else (student, teacher)
