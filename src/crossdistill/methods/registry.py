"""The built-in methods by name, and how a name leads to a method."""

import pkgutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from crossdistill.backbones import Backbone
from crossdistill.errors import UserError, kind_and_line, unknown
from crossdistill.methods.auto import Auto
from crossdistill.methods.base import Method
from crossdistill.methods.cc import CC
from crossdistill.methods.crd import CRD
from crossdistill.methods.dist import DIST
from crossdistill.methods.dkd import DKD
from crossdistill.methods.fbt import FBT
from crossdistill.methods.fitnet import FitNet
from crossdistill.methods.hcd import HCD
from crossdistill.methods.installed import installed_methods, load_installed
from crossdistill.methods.kd import KD
from crossdistill.methods.ofa import OFA
from crossdistill.methods.rkd import RKD
from crossdistill.methods.rsd import RSD
from crossdistill.types import Needs

METHODS: dict[str, type[Method]] = {
    "auto": Auto,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "fitnet": FitNet,
    "cc": CC,
    "rkd": RKD,
    "crd": CRD,
    "ofa": OFA,
    "rsd": RSD,
    "hcd": HCD,
    "fbt": FBT,
}
NONE = "none"
"""Plain training: a distiller without a method."""


def list_methods() -> list[str]:
    """Return the names that `create_distiller` and `--method` accept."""
    return [NONE, *METHODS, *(name for name in installed_methods() if name not in METHODS)]


def find_method(name: str) -> type[Method] | None:
    """Look up a method by its name, built in or of an installed package, or import "package.module:Class".

    None for "none". Raises UserError.
    """
    if not name:
        raise UserError("the name of a method is empty; a sum is written as 'rsd+kd'")
    if name == NONE:
        return None
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        if "{" in name:
            raise UserError(
                f"method {name!r}: options in braces are for lists of methods (`compare --methods`); here they are "
                f"--options.{name.partition('{')[0]}.NAME VALUE"
            )
        if name not in installed_methods():
            raise unknown("method", name, list_methods())
        return _checked(name, load_installed(name))
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # the code of a module can raise anything
        raise UserError(f"method {name!r} cannot be imported ({kind_and_line(error)})") from error
    return _checked(name, found)


def _checked(name: str, found: Any) -> type[Method]:
    """Return what a name has led to. Raises UserError where it is not a method."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method {name!r} is not a subclass of crossdistill.Method")
    if options_key(name) in METHODS:
        raise UserError(f"method {name!r} has the name of a built-in method, which its options share; rename the class")
    if not is_dataclass(found.Options):
        raise UserError(f"method {name!r}: its Options is not a dataclass")
    return found


def options_key(name: str) -> str:
    """Return the name that a method's options have in a recipe: its own, or the class of "package.module:Class"."""
    return name.rpartition(":")[2]


def methods_without_labels() -> list[str]:
    """List the methods that read no labels, by their defaults or with one switch turned off."""
    return _ways(lambda needs: not needs.labels, None, None)


def methods_without_teacher_logits(student: Backbone, teacher: Backbone) -> list[str]:
    """List the methods that read no logits of this teacher, by their defaults or with one switch turned off."""
    return _ways(lambda needs: not needs.teacher.logits, student, teacher)


def methods_without_logits(student: Backbone, teacher: Backbone) -> list[str]:
    """List the methods that read neither logits nor labels, by their defaults or with one switch turned off."""
    return _ways(lambda needs: not (needs.labels or needs.student.logits or needs.teacher.logits), student, teacher)


def _ways(suits: Callable[[Needs], bool], student: Backbone | None, teacher: Backbone | None) -> list[str]:
    """List the methods whose needs suit, by their defaults or with the first switch that makes them."""
    found = []
    for name, method in METHODS.items():
        default = method.Options()
        switches = [field.name for field in fields(default) if getattr(default, field.name) is True]
        ways = {name: default, **{f"{name} with {s}=false": replace(default, **{s: False}) for s in switches}}
        needs = {way: method.needs_of(options, student, teacher) for way, options in ways.items()}
        found += [way for way, read in needs.items() if suits(read) and _have_stages(read, student, teacher)][:1]
    return found


def _have_stages(needs: Needs, student: Backbone | None, teacher: Backbone | None) -> bool:
    """Return whether the stages that a method reads can be read."""
    asked = ((needs.student, student), (needs.teacher, teacher))
    return not any(part.stages and model is not None and model.stage_problem for part, model in asked)
