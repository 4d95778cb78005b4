"""The default for those who do not want to choose: a sum of methods that follows from the pair."""

from typing import ClassVar

from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.methods.base import Method, NoOptions
from crossdistill.methods.kd import KD
from crossdistill.methods.rsd import RSD
from crossdistill.methods.sums import SumOfMethods
from crossdistill.types import Needs


class Auto(SumOfMethods):
    """RSD on the embeddings, and KD on the logits where the teacher has the student's classes.

    The measurements behind the choice are in docs/results.md.
    """

    Options: ClassVar[type] = NoOptions
    idea: ClassVar[str] = "RSD on the embeddings, and KD on the logits where the teacher has the student's classes."
    paper: ClassVar[str] = "-"
    needs = RSD.needs | KD.needs

    def __init__(self, options: NoOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(
            {name: method(method.Options(), student, teacher) for name, method in _parts(student, teacher)}
        )

    @classmethod
    @override
    def needs_of(cls, options: NoOptions, student: Backbone | None = None, teacher: Backbone | None = None) -> Needs:
        if student is None or teacher is None:
            return cls.needs
        needs = Needs()
        for _, method in _parts(student, teacher):
            needs |= method.needs_of(method.Options(), student, teacher)
        return needs


def _parts(student: Backbone, teacher: Backbone) -> list[tuple[str, type[Method]]]:
    parts: list[tuple[str, type[Method]]] = [("rsd", RSD)]
    if teacher.shares_classes(student):
        parts.append(("kd", KD))
    return parts
