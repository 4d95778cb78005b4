"""The parser of a sub-command: jsonargparse's, with dashes in options and plain error texts."""

import argparse
import difflib
import re
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_dumper, set_loader, set_parsing_settings
from typing_extensions import override

from crossdistill.config.yaml_text import load_yaml
from crossdistill.errors import UserError

_MODE = "yaml-core"
set_loader(_MODE, load_yaml, exceptions=(yaml.YAMLError,))
set_dumper(_MODE, yaml.safe_dump)


class Parser(ArgumentParser):
    """A parser whose options may be written with dashes; errors are raised, not printed with a usage page."""

    def __init__(self, command: str, about: str) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            prog=f"crossdistill {command}",
            usage=f"crossdistill {command} [options]",
            description=about,
            exit_on_error=False,
            allow_abbrev=False,
            print_config=None,
            parser_mode=_MODE,
        )

    @override
    def _parse_optional(self, arg_string: str) -> Any:
        # argparse asks here whether a word is an option.
        return super()._parse_optional(  # type: ignore[no-untyped-call]
            re.sub(r"^--[\w.-]+", lambda o: "--" + o.group()[2:].replace("-", "_"), arg_string)
        )

    @override
    def format_help(self, *args: Any, **kwargs: Any) -> str:
        page = super().format_help(*args, **kwargs)
        return re.sub(r"--[a-z][\w.]+", lambda option: option.group().replace("_", "-"), page)

    def hide(self, sections: Collection[str]) -> None:
        """Leave options out of the help; `sections` are names of options or of groups."""
        for action in self._actions:
            if any(action.dest == name or action.dest.startswith(f"{name}.") for name in sections):
                action.help = argparse.SUPPRESS
        for action in self._actions:
            inner = [other.help for other in self._actions if other.dest.startswith(f"{action.dest}.")]
            if inner and all(help == argparse.SUPPRESS for help in inner):
                action.help = argparse.SUPPRESS

    def read(self, argv: Sequence[str]) -> Namespace:
        """Parse. Raises UserError, with the nearest option for an unknown one."""
        _refuse_hexadecimal(argv)
        try:
            return self.parse_args(argv)
        except (ArgumentError, UnicodeDecodeError) as error:
            raise UserError(self.plain(str(error), argv)) from error

    def plain(self, message: str, argv: Sequence[str]) -> str:
        """Turn jsonargparse's message about `argv` into one line."""
        if stray := re.search(r"unrecognized arguments: (\S+)", message):
            option = stray.group(1).partition("=")[0]
            if not option.startswith("-"):
                return f"unexpected argument {option!r}; options begin with --"
            known = sorted({o for action in self._actions for o in action.option_strings})
            near = difflib.get_close_matches(option.replace("-", "_"), [o.replace("-", "_") for o in known], 1, 0.5)
            hint = f"; did you mean {near[0].replace('__', '--', 1).replace('_', '-')}?" if near else ""
            return f"unknown option {option.replace('_', '-')}{hint or f'; see `{self.prog} --help`'}"
        if wrong := re.search(r'key "([\w.]+)".*typing\.Literal\[(.*?)\].*value: (\S*)', message, re.DOTALL):
            option, values, value = wrong.groups()
            return f"--{option.replace('_', '-')} is {value!r}; it must be one of {values.replace(chr(39), '')}"
        return " ".join(message.split())


def given_value(argv: Sequence[str], name: str) -> str | None:
    """Return the text that the command line gives for an option, by its name without dashes; None without one."""
    words = [re.sub(r"^--[\w.-]+", lambda o: o.group()[2:].replace("-", "_"), word) for word in argv]
    for place in reversed(range(len(words))):
        if not argv[place].startswith("--"):
            continue
        option, equals, value = words[place].partition("=")
        if option == name:
            return value if equals else argv[place + 1] if place + 1 < len(argv) else None
    return None


def check_positive(made: Namespace, names: Sequence[str]) -> None:
    """Raise UserError where a number of the command line is below 1; None is accepted."""
    for name in names:
        if made[name] is not None and made[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} is {made[name]}; it must be at least 1")


def _refuse_hexadecimal(argv: Sequence[str]) -> None:
    """Raise UserError for a size such as 0x32, which YAML reads as the number 50."""
    for word, following in pairwise([*argv, ""]):
        name, equals, value = word.partition("=")
        text = value if equals else following
        if name.replace("-", "_").endswith("img_size") and re.search(r"\b0[xX]", text):
            raise UserError(
                f"{name} is {text}; a size is a number of pixels of at least 1, or height and width as 256x128"
            )
