"""Bounded types for settings, and plain error texts for values that do not fit them.

Settings are pydantic dataclasses: a value is checked wherever an object is made, from the command line, a YAML file
or Python.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from crossdistill.errors import UserError, unknown

CHECKED = ConfigDict(extra="forbid")
"""Settings of the dataclasses: an unknown name is an error."""

PositiveInt = Annotated[int, Field(strict=True, ge=1)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
AtLeastTwo = Annotated[int, Field(strict=True, ge=2)]
OptionalPositiveInt = Annotated[int | None, Field(strict=True, ge=1)]
OptionalAtLeastTwo = Annotated[int | None, Field(strict=True, ge=2)]
OptionalNonNegativeInt = Annotated[int | None, Field(strict=True, ge=0)]

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
AtLeastOne = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
OpenShare = Annotated[float, Field(strict=True, gt=0, lt=1)]
OptionalPositive = Annotated[float | None, Field(strict=True, gt=0, allow_inf_nan=False)]
OptionalShare = Annotated[float | None, Field(strict=True, ge=0, le=1)]

Text = BeforeValidator(lambda value: str(value) if type(value) is int else value)
"""Accepts 32 for "32", as people write it in YAML."""
Off = BeforeValidator(lambda value: "off" if value is False or value is None else value)
"""Accepts YAML 1.1's `off`, which is false, and null."""

_T = TypeVar("_T")


def validated(kind: type[_T], values: Mapping[str, Any], owner: str) -> _T:
    """Make a dataclass of `values`; `owner` says in an error what the values belong to.

    Raises UserError for an unknown name (with the nearest one), or a value of another type or range.
    """
    assert is_dataclass(kind)
    known = [field.name for field in fields(kind)]
    for name in values:
        if name not in known:
            if not known:
                raise UserError(f"{owner} has no options, but {name!r} was given")
            raise unknown(f"option of {owner}:", name, known)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(f"{owner}: {plain(error)}") from error


def plain(error: ValidationError) -> str:
    """Say in one line what is wrong with the first value that does not fit."""
    errors = error.errors(include_url=False)
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    if cause is not None:
        return str(cause)
    # A union reports one error for each of its types, with the type as the last part of the location.
    same = [other for other in errors if other["input"] is first["input"]]
    location = first["loc"][:-1] if len(same) > 1 else first["loc"]
    expected = [_EXPECTED.get(one["type"]) or one["msg"].removeprefix("Input should be ") for one in same]
    name = ".".join(str(part) for part in location)
    return f"{name} is {first['input']!r}; it must be {' or '.join(dict.fromkeys(expected))}"


_EXPECTED = {
    "dataclass_type": "a group of settings",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "finite_number": "finite",
}
"""What pydantic's kinds of errors ask for, where its own text speaks of Python."""
