"""The names that people give to splits."""

import re

_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "tests", "testing", "tst", "eval", "evaluation"),
}
_ENDINGS = ("", "set", "data", "dataset", "images", "split")


def split_role(name: str) -> str | None:
    """Return train, val or test for the name of a split in a usual spelling (Train, valid, test_set); else None."""
    plain = re.sub(r"[\W_]+", "", name.lower())
    for role, names in _NAMES.items():
        if any(plain == f"{known}{ending}" for known in names for ending in _ENDINGS):
            return role
    return None


def roles_in(name: str) -> set[str]:
    """Return the splits that the words of a name state: train for mnist_train, train0 and my-train-2."""
    return {role for word in re.findall(r"[^\W\d_]+", name) if (role := split_role(word)) is not None}
