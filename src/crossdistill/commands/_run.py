"""The settings of a run, from a recipe and the command line."""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import yaml
from jsonargparse import Namespace

from crossdistill.commands._parser import Parser, given_value
from crossdistill.config import RunConfig
from crossdistill.config.files import by_dotted_name, from_dict, read_yaml, recipe_path, to_dict, with_changes
from crossdistill.config.yaml_text import load_yaml
from crossdistill.errors import UserError

_EPILOG = "Options of a method are --options.METHOD.OPTION; `crossdistill methods METHOD` lists them."


class RunParser(Parser):
    """A parser of a command that reads the settings of a run: all of them, all but `unread`, or only `reads`.

    The others are accepted, so that the same flags can be used with several commands, but they are left out of the
    help, and a note names those that were given.
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
            self.unread = tuple(name for name in by_dotted_name(to_dict(RunConfig())) if name not in reads)
        self.hide(self.unread)

    def read_run(
        self, argv: Sequence[str], base: RunConfig | None = None, methods: Sequence[str] = (), *, again: bool = False
    ) -> tuple[RunConfig, Namespace]:
        """Read flags over `base`, and return the settings and all parsed values.

        `methods` names further methods whose options may be given. With `again` the same words will be read once more,
        so notes about flags that are not read, and --print-config, are left to that call. Raises UserError.
        """
        _refuse_repeated(argv, ("--teacher", "--teacher-checkpoint"))
        base = base or read_recipe(argv)
        plain = to_dict(base)
        options, _ = plain.pop("options"), plain.pop("role")
        self.set_defaults(by_dotted_name(plain))
        if "-h" in argv or "--help" in argv:
            self.read(argv)
        defaults = self._add_options([read_early_flags(argv).method or base.method, *methods], options)
        made = self.read(argv)
        if not again:
            self._note_unread(argv, [read_early_flags(argv).method or base.method, *methods])
        values = made.as_dict()
        changed = {
            key: {name: value for name, value in values["options"][key].items() if value != default[name]}
            for key, default in defaults.items()
            if default
        }
        settings = {field.name: values[field.name] for field in fields(RunConfig) if field.name in values}
        settings |= {"role": base.role, "options": {key: value for key, value in changed.items() if value}}
        config = from_dict(settings, "")
        if made.print_config and not again:
            print(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), end="")
            raise SystemExit(0)
        return config, made

    def _add_options(self, names: Sequence[str], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Add the options of all methods, with `given` values, and return their defaults by key. Raises UserError."""
        # Imports torch, which the help does not need.
        from crossdistill.methods import (
            METHODS,
            check_option_keys,
            choose_method,
            find_method,
            options_key,
            usable_methods,
        )

        named = [one for name in names for one in name.split("+")]
        methods = {
            options_key(name): name for name in (*METHODS, *usable_methods(), *named) if find_method(name) is not None
        }
        for key in check_option_keys(given, named):
            print(f"note: the recipe's options of {key!r} are not read: that method is not used", file=sys.stderr)
        if "auto" in named and (unread := sorted({"rsd", "kd"} & given.keys())):
            text = f"auto uses the defaults of its methods, not the recipe's options of {' and '.join(unread)}"
            print(f"note: {text}; --method rsd+kd has them", file=sys.stderr)
        defaults = {}
        for key, name in methods.items():
            default, base = choose_method(name), choose_method(name, given.get(key))
            self.add_class_arguments(type(default.parts[0].options), f"options.{key}")
            self.set_defaults({f"options.{key}.{option}": value for option, value in base.plain[key].items()})
            defaults[key] = default.plain[key]
        return defaults

    def plain(self, message: str, argv: Sequence[str]) -> str:
        """Describe a wrong value as it would be described in a recipe."""
        wrong = re.match(r'Parser key "([\w.]+)"', message)
        name = wrong.group(1) if wrong else ""
        text = given_value(argv, name)
        if text is None:
            return super().plain(message, argv)
        try:
            value = load_yaml(text)
        except yaml.YAMLError:
            value = text
        if name not in by_dotted_name(to_dict(RunConfig())) and not name.startswith("options."):
            return f"--{name.replace('_', '-')} is {text}: {super().plain(message, argv)}"
        try:
            if name.startswith("options."):
                from crossdistill.methods import choose_method

                _, key, option = name.split(".")
                choose_method(key, {option: value})
            with_changes(RunConfig(), {name: value}, "")
        except UserError as error:
            return str(error)
        return super().plain(message, argv)

    def given(self, argv: Sequence[str]) -> list[str]:
        """Return the names of the options that the command line gives."""
        return list(self.parse_args(argv, defaults=False).keys())

    def _note_unread(self, argv: Sequence[str], methods: Sequence[str]) -> None:
        from crossdistill.methods import options_key

        used = {options_key(one) for name in methods for one in name.split("+")}
        for name in self.given(argv):
            section, _, rest = name.partition(".")
            key = rest.partition(".")[0]
            if section == "options" and key not in used and section not in self.unread:
                why = f"method {key} is not used"
                if "auto" in used:
                    why = "auto uses the defaults of its methods; --method rsd+kd has their options"
                print(f"note: --{name} has no effect: {why}", file=sys.stderr)
            if any(name == one or name.startswith(f"{one}.") for one in self.unread):
                print(f"note: {self.prog} does not read --{name.replace('_', '-')}", file=sys.stderr)


def read_early_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Read the few flags that decide how the others are read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--recipe", "--method", "--methods", "--out", "--teacher"):
        parser.add_argument(name)
    parser.add_argument("--resume", action="store_true")
    try:
        return parser.parse_known_args(list(argv))[0]
    except argparse.ArgumentError:
        # The parser of the command reports what is wrong.
        return parser.parse_args([])


def read_recipe(argv: Sequence[str], default: str | None = None) -> RunConfig:
    """Read the recipe that `--recipe` names, or the default one. Raises UserError."""
    name = read_early_flags(argv).recipe or default
    if name is None:
        return RunConfig()
    path = recipe_path(name)
    # The role is decided by the command: the settings of a teacher's run can be the recipe of a student's.
    return replace(from_dict(read_yaml(path), f"in {str(path)!r}: "), role="student")


def _refuse_repeated(argv: Sequence[str], names: Sequence[str]) -> None:
    """Raise UserError for an option that is repeated to give a list: only the last one would be used."""
    for name in names:
        spelled = (name, name.replace("-", "_").replace("__", "--", 1))
        if sum(word.partition("=")[0] in spelled for word in argv) > 1:
            raise UserError(f"{name} is given twice; give several as one list: {name} '[a, b]'")
