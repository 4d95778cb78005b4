"""Several methods at once: their terms side by side, from one forward pass of each model."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from crossdistill.methods.base import Method, TermGroup
from crossdistill.types import BackboneOutput


class SumOfMethods(Method):
    """The terms of several methods, each by the name of its method.

    A method's only term that has the method's name keeps it; other terms are called METHOD.TERM.
    """

    idea = "The terms of several methods at once."
    paper = "-"

    def __init__(self, parts: Mapping[str, Method]) -> None:
        nn.Module.__init__(self)
        self.parts = nn.ModuleDict(parts)
        self.needs = reduce(or_, (part.needs for part in parts.values()))
        self.borrowed = tuple(tail for part in parts.values() for tail in part.borrowed)
        self._names = {key: {term: _name(key, term, part) for term in part.weights} for key, part in parts.items()}
        self.weights = {
            self._names[key][term]: weight for key, part in parts.items() for term, weight in part.weights.items()
        }

    @override
    def forward(
        self,
        student: BackboneOutput,
        teacher: BackboneOutput,
        targets: Tensor,
        *,
        watch: Callable[[BackboneOutput, int], BackboneOutput] | None = None,
        **extra: Any,
    ) -> dict[str, Tensor]:
        """Return the terms of all methods; `watch` is applied to the student's output for each, with its number."""
        terms = {}
        for number, (key, part) in enumerate(self.parts.items()):
            assert isinstance(part, Method)
            seen = student if watch is None else watch(student, number)
            own = part(seen, teacher, targets, **(extra if part.needs.index else {}))
            terms.update({self._names[key].get(term, f"{key}.{term}"): value for term, value in own.items()})
        return terms

    @override
    def groups(self) -> list[TermGroup]:
        """Return one group of terms for each method of the sum."""
        return [
            replace(
                group,
                method=key,
                terms=tuple(self._names[key][term] for term in group.terms),
                measured=tuple(self._names[key][term] for term in group.measured),
            )
            for key, part in self.parts.items()
            if isinstance(part, Method)
            for group in part.groups()
        ]


def _name(key: str, term: str, method: Method) -> str:
    return key if len(method.weights) == 1 and term == key else f"{key}.{term}"
