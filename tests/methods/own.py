"""A method from outside the package, as a user would write it."""

from dataclasses import dataclass

from crossdistill import Method, Needs, Reads


@dataclass(frozen=True)
class AgreementOptions:
    weight: float = 1.0


class Agreement(Method):
    Options = AgreementOptions
    idea = "Equal logits."
    paper = "-"
    needs = Needs(student=Reads(logits=True), teacher=Reads(logits=True))

    def __init__(self, options, student, teacher):
        super().__init__(options, student, teacher)
        self.weights = {"agreement": options.weight}

    def forward(self, student, teacher, targets):
        return {"agreement": (student.logits - teacher.logits).square().mean()}


class Bare(Method):
    """Without an idea, a paper or options."""


@dataclass(frozen=True)
class NoDefaultOptions:
    weight: float


class NoDefault(Method):
    Options = NoDefaultOptions
