"""The exception whose text is written for the user."""

import difflib
from collections.abc import Iterable

_MOST_SHOWN = 60
"""Names that a message lists."""


class UserError(ValueError):
    """Input that cannot be used. The message states what was wrong, which value, and what would be right.

    The command line prints its text without a traceback and exits with code 2.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not in `known`, with the closest match."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return UserError(f"unknown {kind} {name!r}; did you mean {near[0]!r}?")
    if len(names) > _MOST_SHOWN:
        return UserError(f"unknown {kind} {name!r}; none of {len(names):,} names is near it")
    return UserError(f"unknown {kind} {name!r}; known are: {', '.join(names)}")


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the error's type where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def kind_and_line(error: BaseException) -> str:
    """Return the type and the first line of an error raised by other code, whose text may mean little by itself."""
    return f"{type(error).__name__}: {first_line(error)}"
