"""The methods by name. Adding one is its file and its line here."""

import importlib
from dataclasses import fields
from typing import Any

from crossdistill.errors import UserError, unknown
from crossdistill.methods.base import Method as Method
from crossdistill.methods.dist import DIST
from crossdistill.methods.dkd import DKD
from crossdistill.methods.fbt import FBT
from crossdistill.methods.hcd import HCD
from crossdistill.methods.kd import KD
from crossdistill.methods.none import Plain
from crossdistill.methods.ofa import OFA
from crossdistill.methods.rsd import RSD
from crossdistill.types import BackboneSpec

METHODS: dict[str, type[Method]] = {
    "none": Plain,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
    "ofa": OFA,
    "rsd": RSD,
    "hcd": HCD,
    "fbt": FBT,
}


def list_methods() -> list[str]:
    """Names that `create_distiller` and `--method` take."""
    return list(METHODS)


def find_method(name: str) -> type[Method]:
    """Look up a method by its name, or import "package.module:Class". Raises UserError."""
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise unknown("method", name, METHODS)
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"method {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"method {name!r} is not a subclass of crossdistill.methods.Method")
    return found


def make_options(name: str, options: dict[str, Any]) -> Any:
    """Make a method's options object. Raises UserError for an unknown option, or a value of another type or range."""
    method = find_method(name)
    known = {field.name: field for field in fields(method.Options)}
    made = dict(options)
    for option, value in options.items():
        if option not in known:
            if not known:
                raise UserError(f"method {name!r} has no options, but {option!r} was given")
            raise unknown(f"option of method {name!r}:", option, known)
        kind = known[option].type
        fits = type(value) in (int, float) if kind is float else kind not in (bool, int, str) or type(value) is kind
        if not fits:
            raise UserError(
                f"option {option!r} of method {name!r} is {value!r}; it must be of type {known[option].type}"
            )
        if kind is float:
            made[option] = float(value)
        elif isinstance(value, list):
            made[option] = tuple(value)
    return method.Options(**made)


def create_method(name: str, student: BackboneSpec, teacher: BackboneSpec | None, options: dict[str, Any]) -> Method:
    """Build a method for a pair. Raises UserError for an unknown method or option, or a missing teacher."""
    method = find_method(name)
    if method.uses_teacher and teacher is None:
        raise UserError(f"method {name!r} needs a teacher")
    return method(make_options(name, options), student, teacher)
