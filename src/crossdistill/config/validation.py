"""Bounded types for settings, and plain error texts for values that do not fit them.

Settings are pydantic dataclasses: a value is checked wherever an object is made, from the command line, a YAML file
or Python.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError
from typing_extensions import dataclass_transform

from crossdistill.errors import UserError, unknown

PositiveInt = Annotated[int, Field(strict=True, ge=1)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
AtLeastTwo = Annotated[int, Field(strict=True, ge=2)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]
OptionalPositiveInt = Annotated[int | None, Field(strict=True, ge=1)]
OptionalAtLeastTwo = Annotated[int | None, Field(strict=True, ge=2)]
OptionalNonNegativeInt = Annotated[int | None, Field(strict=True, ge=0)]

MOST_THREADS = 1024
"""More threads than any machine has are taken for a mistake: the libraries would start them all."""
OptionalThreads = Annotated[int | None, Field(strict=True, ge=1, le=MOST_THREADS)]

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
AtLeastOne = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
FractionBelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
OpenFraction = Annotated[float, Field(strict=True, gt=0, lt=1)]
OptionalPositive = Annotated[float | None, Field(strict=True, gt=0, allow_inf_nan=False)]
OptionalFraction = Annotated[float | None, Field(strict=True, ge=0, le=1)]

Count = Annotated[int, Field(ge=0)]
Unsigned = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
"""Numbers in the records of a run, where 1.0 may stand for 1."""

Text = BeforeValidator(lambda value: str(value) if type(value) is int else value)
"""Accepts 32 for "32", as people write it in YAML."""
Off = BeforeValidator(lambda value: "off" if str(value).lower() in ("off", "no", "none", "null", "false") else value)
"""Accepts every usual way to write that something is off, so that none of them is read as the name of a folder."""

_T = TypeVar("_T")


def number_or(word: str) -> BeforeValidator:
    """Accept numbers, None and a word where a union of them would convert True and "0.1" to numbers."""

    def check(value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, str) and value != word):
            raise PydanticCustomError("number_or", "must be a number or '{word}'", {"word": word})
        return value

    return BeforeValidator(check)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def settings(kind: type[_T]) -> type[_T]:
    """Turn a class into a frozen dataclass, whose values are checked whenever an object is made.

    The constructor raises UserError for an unknown name (with the nearest one), or a value of another type or range.
    """
    made = dataclass(frozen=True, config=ConfigDict(extra="forbid"))(kind)
    construct = made.__init__

    @functools.wraps(construct)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise UserError(_plain(error, made, f"setting of {made.__name__}:")) from error

    made.__init__ = checked  # type: ignore[method-assign]
    return cast("type[_T]", made)


def validated(kind: Any, value: Any, owner: str, noun: str = "setting") -> Any:
    """Make an object of a type from plain data; `owner` begins an error, and `noun` is the word for its names.

    Raises UserError for an unknown name (with the nearest one), or a value of another type or range.
    """
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        # The dataclass of a user's own method may not forbid other names by itself.
        known = {field.name for field in dataclasses.fields(kind)}
        for name in value:
            if name not in known:
                raise UserError(f"{owner}{_unknown_name((name,), kind, noun)}")
    try:
        return TypeAdapter(kind).validate_python(dict(value) if isinstance(value, Mapping) else value)
    except ValidationError as error:
        raise UserError(f"{owner}{_plain(error, kind, noun)}") from error


def first_problem(error: ValidationError) -> str:
    """Return where in a file's content the first wrong value is, and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    place = ".".join(" ".join(str(part).split()) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _plain(error: ValidationError, kind: Any, noun: str) -> str:
    """Describe in one line the first value that does not fit."""
    errors = error.errors(include_url=False)
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    if cause is not None:
        return str(cause)
    # A union reports one error for each of its types, with the type as the last part of the location.
    alike = [other for other in errors if other["input"] is first["input"] and other["loc"][:-1] == first["loc"][:-1]]
    same = [first] if _is_field(kind, first["loc"]) else alike
    location = first["loc"][:-1] if len(same) > 1 else first["loc"]
    name = ".".join(str(part) for part in location)
    if first["type"] == "unexpected_keyword_argument":
        return _unknown_name(location, kind, noun)
    if first["type"] == "missing":
        if isinstance(first["loc"][-1], str):
            return f"{'.'.join(str(part) for part in first['loc'])} is missing"
        return f"{name.rpartition('.')[0]} is {first['input']!r}; it has too few values"
    if first["type"] == "too_long":
        return f"{name} is {first['input']!r}; it has too many values"
    if first["type"] == "number_or":
        return f"{name} is {first['input']!r}; it {first['msg']}"
    expected = [_EXPECTED.get(one["type"]) or one["msg"].removeprefix("Input should be ") for one in same]
    return f"{name or 'it'} is {first['input']!r}; it must be {' or '.join(dict.fromkeys(expected))}"


def _is_field(kind: Any, location: tuple[int | str, ...]) -> bool:
    """Return whether the place of an error is a field of nested dataclasses."""
    for name in location:
        found = [field for field in dataclasses.fields(kind) if field.name == name] if _is_settings(kind) else []
        if not found:
            return False
        kind = found[0].type
    return True


def _is_settings(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _unknown_name(location: tuple[int | str, ...], kind: Any, noun: str) -> str:
    *sections, name = (str(part) for part in location)
    for section in sections:
        kind = next(field.type for field in dataclasses.fields(kind) if field.name == section)
    known = [field.name for field in dataclasses.fields(kind)]
    if not known:
        return f"there are no options, but {name!r} was given"
    return str(unknown(noun, ".".join([*sections, name]), [".".join([*sections, one]) for one in known]))


_EXPECTED = {
    "dataclass_type": "a group of settings",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "finite_number": "finite",
}
"""Expected values in plain words, by pydantic's type of error."""
