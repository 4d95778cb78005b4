"""The networks in a file of weights that could be a model's, and which of them is taken."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.errors import UserError

OPTIONAL = "num_batches_tracked"
"""A counter of batch norms that evaluation does not use, and that old files do not have."""
_AVERAGED = re.compile(r"(^|[._])((ema|swa)\d*|averag\w*|shadow(_params)?)([._]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """Weights behind one prefix in one mapping of a file."""

    part: str
    weights: dict[str, Tensor]
    matching: int
    """How many of the model's names are among them."""

    @property
    def averaged(self) -> bool:
        """Whether they are an average over training, by their keys."""
        return _AVERAGED.search(self.part) is not None


def candidates(keys: str, group: dict[str, Tensor], expected: dict[str, Tensor]) -> list[Candidate]:
    """Return the parts of a mapping that share names with the model, one for each prefix."""
    cleaned = {name.replace("_orig_mod.", ""): value for name, value in group.items()}
    if len(cleaned) < len(group):
        twice = next(name for name in group if "_orig_mod." in name and name.replace("_orig_mod.", "") in group)
        raise UserError(f"the checkpoint holds {twice!r} both with and without '_orig_mod.'; remove one of them")
    matching: dict[str, int] = defaultdict(int)
    for name in cleaned:
        places = [0, *(place.end() for place in re.finditer(r"\.", name))]
        for place in places:
            if name[place:] in expected and not name.endswith(OPTIONAL):
                matching[name[:place]] += 1
    found = []
    for prefix in sorted(matching):
        weights = {name[len(prefix) :]: value for name, value in cleaned.items() if name.startswith(prefix)}
        part = ".".join(text for text in (keys, prefix.rstrip(".")) if text)
        found.append(Candidate(part, weights, matching[prefix]))
    return found


def choose(
    found: list[Candidate], expected: dict[str, Tensor], path: Path, key: str | None, head: Sequence[str] = ()
) -> Candidate:
    """Choose the network that fits; of none that does, the most similar one. Raises UserError for several.

    `head` are names, of weights of any shape, that the chosen one has where one that fits has them.
    """
    if key is not None:
        named = [one for one in found if f".{key}." in f".{one.part}."]
        if not named:
            parts = ", ".join(repr(one.part) for one in found[:4]) or "none"
            raise UserError(f"checkpoint {str(path)!r} has no network under {key!r}; parts that share names: {parts}")
        # Of `model` and `ema.model` the key model means the first.
        shortest = min(one.part.count(".") for one in named)
        found = [one for one in named if one.part.count(".") == shortest]
    whole = [one for one in found if fits(one, expected)]
    if not whole:
        return max(found, key=lambda one: (one.matching, one.averaged, -len(one.part)), default=Candidate("", {}, 0))
    whole = [one for one in whole if all(name in one.weights for name in head)] or whole
    whole = _different(whole, expected)
    averaged = [one for one in whole if one.averaged]
    left = averaged or whole
    if len(left) > 1:
        parts = ", ".join(repr(one.part) for one in left)
        raise UserError(
            f"checkpoint {str(path)!r} holds several networks that fit the model: {parts}; choose one with "
            "--model.teacher-checkpoint-key or --model.student-checkpoint-key (checkpoint_key= in Python)"
        )
    return left[0]


def unused_average(tensors: Mapping[str, Tensor], chosen: Candidate, expected: dict[str, Tensor]) -> str:
    """Say why averaged weights that a file has beside the chosen ones are not used; "" without any.

    `tensors` are all of the file, by their keys with dots.
    """
    own = {f"{chosen.part}.{name}".lstrip(".") for name in expected}
    others = {name: value for name, value in tensors.items() if name not in own}
    found = next(filter(None, map(_AVERAGED.search, others)), None)
    if chosen.averaged or found is None:
        return ""
    place = found.string[: found.end()].rstrip("._")
    inner = {name[len(place) :].lstrip("._"): value for name, value in others.items() if name.startswith(place)}
    needed = [name for name, value in expected.items() if value.ndim]
    best = max(candidates(place, inner, expected), key=lambda one: one.matching, default=None)
    if best is None:
        # A few tensors are no network.
        several = 2 * len(inner) > len(needed)
        return f"the averaged weights under {place!r} have other names, so they are not used" if several else ""
    lacks = [name for name in needed if name not in best.weights]
    if not lacks and fits(best, expected):
        return ""  # they are equal to the chosen ones
    why = f"lack {lacks[0]!r}" if lacks else "have other shapes"
    return f"the averaged weights under {best.part!r} {why}, so they are not used"


def fits(one: Candidate, expected: dict[str, Tensor]) -> bool:
    """Return whether all names of a model are there, in its shapes."""
    return all(
        name.endswith(OPTIONAL) or (name in one.weights and one.weights[name].shape == value.shape)
        for name, value in expected.items()
    )


def _different(candidates: list[Candidate], expected: dict[str, Tensor]) -> list[Candidate]:
    """Leave out candidates whose weights are those of an earlier one."""
    kept: list[Candidate] = []
    for one in candidates:
        if not any(
            all(name.endswith(OPTIONAL) or torch.equal(one.weights[name], other.weights[name]) for name in expected)
            for other in kept
        ):
            kept.append(one)
    return kept
