"""Lists of class names: compared, and put in order."""

import unicodedata
from collections.abc import Sequence, Set

from crossdistill.errors import UserError

_SHOWN = 5


def name_difference(owner: str, names: Sequence[str], other: str, others: Sequence[str]) -> str:
    """Say which class names are in one list alone."""
    only, only_other = sorted(set(names) - set(others)), sorted(set(others) - set(names))
    return "; ".join(f"only {who} has {_few(few)}" for who, few in ((owner, only), (other, only_other)) if few)


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def canonical_name(name: str) -> str:
    """Return a class name in one form of Unicode, NFC."""
    return unicodedata.normalize("NFC", name)


def largest_number(labels: Set[str], owner: str) -> int | None:
    """Return the largest of labels that are all whole numbers; None where some are text.

    Raises UserError for labels with a -1 among them, which marks an image without a label, and for a number that is
    written in two ways.
    """
    plain = {label for label in labels if label.isascii() and label.isdigit()}
    if "-1" in labels:
        raise UserError(f"{owner} give training images the label -1, which stands for no label: leave these images out")
    if plain != set(labels):
        return None
    values: dict[int, str] = {}
    for label in sorted(plain):
        if (other := values.setdefault(int(label), label)) != label:
            raise UserError(f"{owner} write one class as {other!r} and as {label!r}: write it in one way")
    return max(values)


def sorted_classes(labels: Set[str]) -> tuple[str, ...]:
    """Put class names in order: whole numbers by value, text by code point."""
    if all(label.isascii() and label.isdigit() for label in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))
