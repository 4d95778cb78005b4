"""The methods by name. Adding one takes its file and its line here."""

import pkgutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

from crossdistill.backbones import Backbone
from crossdistill.config.validation import validated
from crossdistill.errors import UserError, unknown
from crossdistill.methods.base import Method as Method
from crossdistill.methods.dist import DIST
from crossdistill.methods.dkd import DKD
from crossdistill.methods.fbt import FBT
from crossdistill.methods.hcd import HCD
from crossdistill.methods.kd import KD
from crossdistill.methods.ofa import OFA
from crossdistill.methods.rsd import RSD
from crossdistill.types import Needs

METHODS: dict[str, type[Method]] = {
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "ofa": OFA,
    "rsd": RSD,
    "hcd": HCD,
    "fbt": FBT,
}
NONE = "none"
"""Plain training: a distiller without a method."""


def list_methods() -> list[str]:
    """Return the names that `create_distiller` and `--method` accept."""
    return [NONE, *METHODS]


def find_method(name: str) -> type[Method] | None:
    """Look up a method by its name, or import "package.module:Class"; None for "none". Raises UserError."""
    if name == NONE:
        return None
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise unknown("method", name, list_methods())
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"method {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method {name!r} is not a subclass of crossdistill.Method")
    return found


def options_key(name: str) -> str:
    """Return the name that a method's options have in a recipe: its own, or the class of "package.module:Class"."""
    return name.rpartition(":")[2]


@dataclass(frozen=True)
class MethodChoice:
    """A method and its options, before it is built for a pair; "none" has neither."""

    name: str
    method: type[Method] | None
    options: Any

    @property
    def needs(self) -> Needs:
        """What is read of the two outputs; the built method may need less for its pair."""
        return Needs() if self.method is None else self.method.needs_of(self.options)

    @property
    def plain(self) -> dict[str, dict[str, Any]]:
        """All options as plain data that YAML can hold, by the method's key."""
        if self.method is None:
            return {}
        values = asdict(self.options).items()
        return {options_key(self.name): {key: list(v) if isinstance(v, tuple) else v for key, v in values}}

    def build(self, student: Backbone, teacher: Backbone | None) -> Method | None:
        """Build the method for a pair; None for "none". Raises UserError for a pair that it cannot serve."""
        if self.method is None:
            return None
        check_needs(self.name, self.needs, student, teacher)
        return self.method(self.options, student, teacher)


def choose_method(name: str, options: Any = None) -> MethodChoice:
    """Choose a method by its name, with options as a dict or as its options object.

    Raises UserError for an unknown method or option, or a value of another type or range.
    """
    method = find_method(name)
    if method is None:
        if options:
            raise UserError(f"method {name!r} has no options, but {next(iter(options))!r} was given")
        return MethodChoice(name, None, None)
    values = {} if options is None else options
    if is_dataclass(values) and not isinstance(values, type):
        if not isinstance(values, method.Options):
            raise UserError(f"options is a {type(values).__name__}; method {name!r} takes {method.Options.__name__}")
        values = asdict(values)
    elif not isinstance(values, Mapping):
        raise UserError(f"options is {values!r}; it must be a dict or a {method.Options.__name__}")
    return MethodChoice(name, method, validated(method.Options, values, f"method {name!r}"))


def choose_from(name: str, options: Mapping[str, Mapping[str, Any]]) -> MethodChoice:
    """Choose a method with those of the options, by method, that are its own. Raises UserError."""
    return choose_method(name, options.get(options_key(name)))


def check_needs(name: str, needs: Needs, student: Backbone, teacher: Backbone | None) -> None:
    """Raise UserError where a method reads what the student or the teacher does not offer."""
    if needs.student.stages:
        student.require_stages()
    if not needs.teacher:
        return
    if teacher is None:
        raise UserError(f"method {name!r} needs a teacher")
    if needs.teacher.stages:
        teacher.require_stages()
    ours, theirs = student.spec.num_classes, teacher.spec.num_classes
    if needs.teacher.logits and ours != theirs:
        offer = f"has {theirs} classes, the student {ours}" if theirs else "has no classifier"
        raise UserError(
            f"method {name!r} reads the teacher's logits, but {teacher.spec.name!r} {offer}: use a method that does "
            f"not ({', '.join(_without_teacher_logits())}), or train the teacher on the student's classes first "
            "(`crossdistill teacher`)"
        )


def _without_teacher_logits() -> list[str]:
    """List the methods that read no logits of the teacher, by their defaults or with one switch turned off."""
    found = []
    for name, method in METHODS.items():
        default = method.Options()
        switches = [field.name for field in fields(default) if getattr(default, field.name) is True]
        ways = {name: default, **{f"{name} with {s}=false": replace(default, **{s: False}) for s in switches}}
        found += [way for way, options in ways.items() if not method.needs_of(options).teacher.logits][:1]
    return found
