"""Lists of class names, compared."""

import unicodedata
from collections.abc import Sequence

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
