"""The settings of a run, from a recipe and the command line."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import yaml
from jsonargparse import Namespace

from crossdistill.commands._parser import Parser
from crossdistill.config import RunConfig
from crossdistill.config.files import from_dict, read_yaml, recipe_path, to_dict, with_changes
from crossdistill.errors import UserError, unknown

_EPILOG = "Options of a method are --options.METHOD.OPTION; `crossdistill methods METHOD` lists them."


class RunParser(Parser):
    """A parser of a command that reads the settings of a run: all of them, all but `unread`, or only `reads`.

    The others are accepted, so that the same flags serve several commands, but they are left out of the help, and a
    note names those that were given.
    """

    def __init__(
        self, command: str, about: str, *, unread: Sequence[str] = (), reads: Sequence[str] | None = None
    ) -> None:
        super().__init__(command, about)
        self.unread = tuple(unread)
        self.epilog = _EPILOG if reads is None and "options" not in unread else None
        self.add_argument(
            "--recipe",
            type=str | None,
            default=None,
            help="A recipe by name, or a YAML file; flags replace its values.",
        )
        self.add_argument("--print_config", action="store_true", help="Print the settings as YAML, and exit.")
        self.add_class_arguments(RunConfig, skip={"options", "role"})
        if reads is not None:
            self.unread = tuple(name for name in _flat(to_dict(RunConfig())) if name not in reads)
        self.hide(self.unread)

    def read_run(
        self, argv: Sequence[str], base: RunConfig | None = None, methods: Sequence[str] = ()
    ) -> tuple[RunConfig, Namespace]:
        """Read flags over `base`, and return the settings and all parsed values.

        `methods` names further methods whose options may be given. Raises UserError.
        """
        _refuse_repeated(argv, ("--teacher", "--teacher-checkpoint"))
        base = base or read_recipe(argv)
        plain = to_dict(base)
        options, _ = plain.pop("options"), plain.pop("role")
        self.set_defaults(_flat(plain))
        if "-h" in argv or "--help" in argv:
            self.read(argv)
        defaults = self._add_options([first_look(argv).method or base.method, *methods], options)
        made = self.read(argv)
        self._note_unread(argv)
        values = made.as_dict()
        changed = {
            key: {name: value for name, value in values["options"][key].items() if value != default[name]}
            for key, default in defaults.items()
            if default
        }
        settings = {field.name: values[field.name] for field in fields(RunConfig) if field.name in values}
        settings |= {"role": base.role, "options": {key: value for key, value in changed.items() if value}}
        config = from_dict(settings, "")
        if made.print_config:
            print(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), end="")
            raise SystemExit(0)
        return config, made

    def _add_options(self, names: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Add the options of all methods, with `given` values, and return their defaults by key. Raises UserError."""
        # Imports torch, which the help does without.
        from crossdistill.methods import METHODS, choose_method, find_method, options_key

        named = [one for name in names for one in name.split("+")]
        methods = {options_key(name): name for name in (*METHODS, *named) if find_method(name) is not None}
        for key in given:
            if key not in methods:
                raise unknown("method", key, methods)
        defaults = {}
        for key, name in methods.items():
            default, base = choose_method(name), choose_method(name, given.get(key))
            self.add_class_arguments(type(default.parts[0].options), f"options.{key}")
            self.set_defaults({f"options.{key}.{option}": value for option, value in base.plain[key].items()})
            defaults[key] = default.plain[key]
        return defaults

    def _note_unread(self, argv: Sequence[str]) -> None:
        for name in self.parse_args(argv, defaults=False).keys():  # noqa: SIM118, a Namespace of sections
            if any(name == one or name.startswith(f"{one}.") for one in self.unread):
                print(f"note: {self.prog} does not read --{name.replace('_', '-')}", file=sys.stderr)


def first_look(argv: Sequence[str]) -> argparse.Namespace:
    """Read the few flags that decide how the others are read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--recipe", "--method", "--methods", "--out", "--teacher"):
        parser.add_argument(name)
    parser.add_argument("--resume", action="store_true")
    try:
        return parser.parse_known_args(list(argv))[0]
    except argparse.ArgumentError:
        # The parser of the command says what is wrong.
        return parser.parse_args([])


def read_recipe(argv: Sequence[str], default: str | None = None) -> RunConfig:
    """Read the recipe that `--recipe` names, or the default one. Raises UserError."""
    name = first_look(argv).recipe or default
    if name is None:
        return RunConfig()
    path = recipe_path(name)
    return from_dict(read_yaml(path), f"in {str(path)!r}: ")


def for_teacher(config: RunConfig) -> RunConfig:
    """Apply the settings of the teacher's own training. Raises UserError."""
    changed = with_changes(config, config.teacher_training, "teacher_training: ")
    return with_changes(changed, {"teacher_training": {}}, "")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name; the values of free mappings stay together."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        section = isinstance(value, dict) and key != "teacher_training"
        flat.update({f"{key}.{inner}": v for inner, v in value.items()} if section else {key: value})
    return flat


def _refuse_repeated(argv: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError for an option that people repeat to give a list: the last one would silently win."""
    for name in names:
        spelled = (name, name.replace("-", "_").replace("__", "--", 1))
        if sum(word.partition("=")[0] in spelled for word in argv) > 1:
            raise UserError(f"{name} is given twice; give several as one list: {name} '[a, b]'")
