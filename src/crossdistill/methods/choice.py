"""The choice of a method or a sum of methods, with options, before it is built for a pair of models."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import reduce
from operator import or_
from typing import Any

from crossdistill.backbones import Backbone
from crossdistill.config.validation import validated
from crossdistill.data.class_names import name_difference
from crossdistill.errors import UserError, kind_and_line, unknown
from crossdistill.methods.base import Method
from crossdistill.methods.installed import installed_methods
from crossdistill.methods.registry import (
    METHODS,
    NONE,
    find_method,
    methods_without_logits,
    methods_without_teacher_logits,
    options_key,
)
from crossdistill.methods.sums import SumOfMethods
from crossdistill.types import Needs


@dataclass(frozen=True)
class Part:
    """One method of a choice, with its options."""

    name: str
    method: type[Method]
    options: Any

    @property
    def plain(self) -> dict[str, Any]:
        """All options as plain data that YAML can hold."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self.options).items()}


@dataclass(frozen=True)
class MethodChoice:
    """A method, or a sum of methods, with options, before it is built for a pair; "none" has no parts."""

    parts: tuple[Part, ...]

    @property
    def needs(self) -> Needs:
        """What is read of the two outputs, for any pair."""
        return self.needs_for(None, None)

    @property
    def plain(self) -> dict[str, dict[str, Any]]:
        """All options as plain data, by the key of each method."""
        return {options_key(part.name): part.plain for part in self.parts}

    def needs_for(self, student: Backbone | None, teacher: Backbone | None) -> Needs:
        """Return what is read of the two outputs of a pair."""
        return reduce(or_, (part.method.needs_of(part.options, student, teacher) for part in self.parts), Needs())

    def for_images(self, count: int) -> "MethodChoice":
        """Return this choice for a training set of `count` images.

        It is the option `images` of methods that read the number of each image.
        """
        return MethodChoice(
            tuple(
                replace(part, options=replace(part.options, images=part.options.images or count))
                if part.method.needs.index and hasattr(part.options, "images")
                else part
                for part in self.parts
            )
        )

    def build(self, student: Backbone, teacher: Backbone | None) -> Method | None:
        """Build the method for a pair; None for "none". Raises UserError for a pair that it does not support."""
        built: dict[str, Method] = {}
        for part in self.parts:
            check_needs(part.name, part.method.needs_of(part.options, student, teacher), student, teacher)
            built[options_key(part.name)] = _built(part, student, teacher)
        return SumOfMethods(built) if len(built) > 1 else next(iter(built.values()), None)


def _built(part: Part, student: Backbone, teacher: Backbone | None) -> Method:
    try:
        return part.method(part.options, student, teacher)
    except UserError:
        raise
    except Exception as error:
        if part.name in METHODS:
            raise
        raise UserError(f"method {part.name!r} cannot be built ({kind_and_line(error)})") from error


def choose_method(name: str, options: Any = None) -> MethodChoice:
    """Choose a method by its name, or a sum of methods by "name+name".

    `options` are those of the method, as a dict or as its options object; of a sum, a dict of these by the names of its
    methods. Raises UserError for an unknown method or option, or a value of another type or range.
    """
    names = name.split("+")
    if len(names) == 1:
        return _choose_one(name, options)
    keys = [options_key(one) for one in names]
    _check_sum(name, keys)
    given = {} if options is None else options
    if not isinstance(given, Mapping):
        raise UserError(f"options is {given!r}; for {name!r} it must be a dict by method, as {{{keys[0]!r}: {{...}}}}")
    for key in given:
        if key not in keys:
            raise unknown(f"method in the options of {name!r}:", key, keys)
    return MethodChoice(tuple(_choose_one(one, given.get(options_key(one))).parts[0] for one in names))


def _check_sum(name: str, keys: list[str]) -> None:
    """Raise UserError for names that are no parts of a sum."""
    for key in keys:
        if key == NONE:
            raise UserError(f"method {name!r}: {NONE!r} is no part of a sum; leave it out")
        if key in METHODS and issubclass(METHODS[key], SumOfMethods):
            raise UserError(f"method {name!r}: {key!r} is a sum itself; name its parts, as in 'rsd+kd+fitnet'")
        if keys.count(key) > 1:
            raise UserError(f"method {name!r} names {key!r} twice")


def _choose_one(name: str, options: Any) -> MethodChoice:
    method = find_method(name)
    if method is None:
        if options:
            raise UserError(f"method {name!r} has no options, but {next(iter(options))!r} was given")
        return MethodChoice(())
    values = {} if options is None else options
    if is_dataclass(values) and not isinstance(values, type):
        if not isinstance(values, method.Options):
            raise UserError(f"options is a {type(values).__name__}; method {name!r} takes {method.Options.__name__}")
        values = asdict(values)
    elif not isinstance(values, Mapping):
        raise UserError(f"options is {values!r}; it must be a dict or a {method.Options.__name__}")
    return MethodChoice((Part(name, method, _options_of(name, method, values)),))


def _options_of(name: str, method: type[Method], values: Mapping[str, Any]) -> Any:
    missing = [f.name for f in fields(method.Options) if f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise UserError(f"method {name!r}: its option {missing[0]!r} has no default; every option must have one")
    return validated(method.Options, values, f"method {name!r}: ", "option")


def check_option_keys(options: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the keys of options that belong to none of the methods `names` and to no built-in one.

    They may belong to a method of the user's that is not used now. Raises UserError for a key that resembles a known
    one.
    """
    known = {*METHODS, *installed_methods(), *(options_key(part) for name in names for part in name.split("+"))}
    others = [key for key in options if key not in known]
    for key in others:
        if get_close_matches(key, known):
            raise unknown("method in the options:", key, known)
    return others


def options_for(name: str, options: Mapping[str, Mapping[str, Any]]) -> Any:
    """Take from options by method those of one method or sum, as `choose_method` accepts them."""
    keys = [options_key(one) for one in name.split("+")]
    return options.get(keys[0]) if len(keys) == 1 else {key: options[key] for key in keys if key in options}


def check_needs(name: str, needs: Needs, student: Backbone, teacher: Backbone | None) -> None:
    """Raise UserError where a method reads what the student or the teacher does not offer."""
    if needs.student.stages:
        student.require_stages()
    if needs.student.logits and not student.spec.num_classes:
        raise UserError(_no_classifier(name, student, teacher))
    if not needs.teacher:
        return
    if teacher is None:
        raise UserError(f"method {name!r} needs a teacher")
    if needs.teacher.stages:
        teacher.require_stages()
    if needs.teacher.logits and not teacher.shares_classes(student):
        others = ", ".join(methods_without_teacher_logits(student, teacher))
        raise UserError(
            f"method {name!r} reads the teacher's logits, but {_other_classes(student, teacher)}: use a method that "
            f"does not ({others}), or first train the teacher on the classes of the student (`crossdistill teacher`)"
        )


def _other_classes(student: Backbone, teacher: Backbone) -> str:
    ours = student.spec.num_classes
    other = next(one for one in teacher.networks if not one.shares_classes(student))
    if other.spec.num_classes != ours or other.class_names is None or student.class_names is None:
        return f"{teacher.classes_in_words()} and the student has {ours}"
    difference = name_difference("the teacher", other.class_names, "the student", student.class_names)
    difference = difference or "the same names in another order"
    return f"{other.spec.name!r} knows other classes than the student: {difference}"


def _no_classifier(name: str, student: Backbone, teacher: Backbone | None) -> str:
    found = f"method {name!r} reads the student's logits, but {student.classes_in_words()}"
    if teacher is None:
        return found
    others = ", ".join(methods_without_logits(student, teacher))
    return (
        f"{found}, and {teacher.classes_in_words()}: use a method that reads no logits ({others}), or models with the "
        "same classes"
    )


def usable_methods() -> list[str]:
    """Return the names of the methods of installed packages that can be imported, and are not those of built-in ones.

    One that cannot must not stop a run that does not use it; `find_method` says why.
    """
    found = []
    for name in installed_methods():
        if name in METHODS:
            continue
        with contextlib.suppress(UserError):
            choose_method(name)
            found.append(name)
    return found
