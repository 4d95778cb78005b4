"""The parser of a sub-command: jsonargparse's, with dashes in options and plain error texts."""

import argparse
import difflib
import re
from collections.abc import Collection, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from typing_extensions import override

from crossdistill.errors import UserError


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
        try:
            return self.parse_args(argv)
        except (ArgumentError, UnicodeDecodeError) as error:
            raise UserError(self._plain(str(error))) from error

    def _plain(self, message: str) -> str:
        if stray := re.search(r"unrecognized arguments: (\S+)", message):
            option = stray.group(1).partition("=")[0]
            if not option.startswith("-"):
                return f"unexpected argument {option!r}; options begin with --"
            known = sorted({o for action in self._actions for o in action.option_strings})
            near = difflib.get_close_matches(option.replace("-", "_"), [o.replace("-", "_") for o in known], 1, 0.5)
            hint = f"; did you mean {near[0].replace('__', '--', 1).replace('_', '-')}?" if near else ""
            return f"unknown option {option.replace('_', '-')}{hint or f'; see `{self.prog} --help`'}"
        if wrong := re.match(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL):
            return f"{wrong.group(1)}: {_reason(wrong.group(2))}"
        return " ".join(message.split())


def _reason(text: str) -> str:
    """Shorten jsonargparse's account of a value that has another type."""
    if wrong := re.search(r"Expected an? (.+?)\. Got value: (.*)", text):
        expected = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", wrong.group(1)).replace("typing.Literal", "one of ")
        return f"{wrong.group(2)!r} is not {expected}"
    if wrong := re.search(r"Given value: (.*)", text):
        kinds = dict.fromkeys(re.findall(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|(typing\.\S+))", text))
        return f"{wrong.group(1)!r} is not {' or '.join(a or b for a, b in kinds)}"
    return " ".join(text.split())
