"""What kind of name a model has, and whether a file may name the user's own code."""

from collections.abc import Collection, Iterable

from crossdistill.config.run import RunConfig
from crossdistill.errors import UserError

_SOURCES = ("hf-hub:", "local-dir:")
"""Prefixes of names that say where timm finds a model's config and weights."""
_NOT_CODE = (*_SOURCES, "torchvision:", "hf:")
"""Prefixes of names that are looked up in a library."""


def is_source(name: str) -> bool:
    """Return whether a name says where a timm model is, and not which architecture it has."""
    return name.startswith(_SOURCES)


def is_transformers(name: str) -> bool:
    """Return whether a name is that of a transformers model, which is always built with its weights."""
    return name.startswith("hf:")


def is_code(name: str) -> bool:
    """Return whether a name is of the kind package.module:factory, which is imported."""
    return ":" in name and not name.startswith(_NOT_CODE)


def code_of(config: RunConfig) -> list[str]:
    """Return the names of code in settings: of the student, the teachers, and the methods of a sum."""
    names = [config.student, *(name for name, _ in config.teachers if name is not None), *config.method.split("+")]
    return [name for name in names if is_code(name)]


def check_named_code(names: Iterable[str], source: str, allowed: Collection[str], *, trust: bool) -> None:
    """Raise UserError where a file names code that is not among the names `allowed`, which the user gave.

    `source` is the file. Nothing has been imported then.
    """
    for name in names:
        if is_code(name) and name not in allowed and not trust:
            raise UserError(
                f"{source!r} names code, {name!r}, which would be imported and run; if you trust it, give --trust-code "
                "true (or trust_code=True), or the name itself where the command has an option for it"
            )
