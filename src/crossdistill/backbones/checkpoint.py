"""Load weights from a file into a model: all of them, or an error that names the keys.

A file may hold several networks. One fits where it has all names of the model, under some keys and behind some prefix.
One that fits is taken; of several, the averaged one (with ema, swa, averag or shadow in its keys); of several others,
none: the user chooses one by its key. Which one is taken depends on the names alone, in every process.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backbones.candidates import OPTIONAL, Candidate, candidates, choose, fits, unused_average
from crossdistill.backbones.weights_file import groups_of, names_in, read_file, tensors_in
from crossdistill.errors import UserError

_OPTIMISER = re.compile(r"(^|[._])(opt|optim|optimi[sz]ers?)([._]|$)", re.IGNORECASE)
"""Keys of an optimiser's state, which may have the names of the weights."""


@dataclass(frozen=True)
class Loaded:
    """What was loaded: the keys that led to it in the file ("" for the whole file), and the file's class names.

    `note` says why names in the file are not used, `average` why its averaged weights are not.
    """

    part: str
    class_names: tuple[str, ...] | None
    note: str = ""
    average: str = ""


def load_weights(
    model: nn.Module,
    path: Path,
    prefix: str | None = None,
    key: str | None = None,
    without: Sequence[str] = (),
) -> Loaded:
    """Load a checkpoint file into `model`, all of its weights but those of the modules named in `without`.

    With `prefix`, the weights are those whose names begin with it. `key` chooses one of several networks in the file.
    Raises UserError for keys that are missing, not expected or of another shape, and for several networks that fit.
    """
    state = model.state_dict()
    expected = {name: value for name, value in state.items() if not inside(name, without)}
    loaded = read_file(path)
    if prefix is not None:
        joined = {name: value for group in _groups(loaded, path).values() for name, value in group.items()}
        weights = {name[len(prefix) :]: value for name, value in joined.items() if name.startswith(prefix)}
        chosen = Candidate(prefix, weights, 0)
    else:
        chosen = _find(loaded, expected, path, key, model)
    tensors = {name: value for name, value in tensors_in(loaded).items() if not _OPTIMISER.search(name)}
    average = "" if prefix or key else unused_average(tensors, chosen, expected)
    found = {name: value for name, value in chosen.weights.items() if not inside(name, without)}
    _check_fit(found, expected, path)
    kept = {name: value for name, value in state.items() if name not in expected or name.endswith(OPTIONAL)}
    _check_values(found, [name for name, _ in model.named_parameters()], path)
    model.load_state_dict({**kept, **{name: found[name] for name in expected if name in found}})
    return Loaded(chosen.part, *names_in(loaded), average)


def stored_weights(
    path: Path, expected: dict[str, Tensor], model: nn.Module, key: str | None = None, head: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Return the weights of the network in a file that fits `expected` best, by their names in the model.

    Of several that fit, those with the weights named in `head` come first, of any shape. Raises UserError for a file
    that cannot be read, and for several networks that fit.
    """
    return _find(read_file(path), expected, path, key, model, head).weights


def _find(
    loaded: Any,
    expected: dict[str, Tensor],
    path: Path,
    key: str | None,
    model: nn.Module,
    head: Sequence[str] = (),
) -> Candidate:
    groups = _groups(loaded, path)
    found = [one for keys, group in groups.items() for one in candidates(".".join(keys), group, expected)]
    if not any(fits(one, expected) for one in found):
        converted = {keys: _converted(group, model) for keys, group in groups.items()}
        found += [one for keys, group in converted.items() for one in candidates(".".join(keys), group, expected)]
    return choose(found, expected, path, key, head)


def _converted(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights under today's names, by timm's own conversion for older files; empty where it does not apply.

    timm also resamples weights of another input size; such a conversion is left out, since the model is another one.
    """
    convert = getattr(sys.modules.get(type(model).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return {}
    plain = {name.removeprefix("module."): value for name, value in weights.items()}
    try:
        made = convert(dict(plain), model)
    except Exception:  # it is written for files of its own model, and may fail in any way on others
        return {}
    tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
    stored = {value.untyped_storage().data_ptr() for value in plain.values()}
    # Separate queries, keys and values become one new weight; every other new tensor was computed from another size.
    same = all(v.untyped_storage().data_ptr() in stored or "qkv" in name for name, v in tensors.items())
    return tensors if same else {}


def _groups(loaded: Any, path: Path) -> dict[tuple[str, ...], dict[str, Tensor]]:
    groups = {keys: group for keys, group in groups_of(loaded).items() if not _OPTIMISER.search(".".join(keys))}
    if not groups:
        raise UserError(f"checkpoint {str(path)!r} holds no weights")
    for group in groups.values():
        for name, value in group.items():
            if kind := _special(value):
                raise UserError(
                    f"checkpoint {str(path)!r}: {name!r} is a {kind} tensor; save plain weights, before they are "
                    "converted"
                )
    return groups


def _special(tensor: Tensor) -> str | None:
    """Name the kind of a tensor that is not a plain array; None for one that is."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_nested:
        return "nested"
    return None if tensor.layout == torch.strided else "sparse"


def inside(name: str, modules: Sequence[str]) -> bool:
    """Return whether a weight is one of some modules, by its name."""
    return any(name.startswith(f"{module}.") for module in modules)


def _check_values(found: dict[str, Tensor], parameters: Sequence[str], path: Path) -> None:
    """Raise UserError for weights and statistics that are no numbers; masks among the buffers may be infinite."""
    statistics = [name for name in found if name.endswith(("running_mean", "running_var"))]
    for name in (*parameters, *statistics):
        # Numbers of 8 bits have few operations.
        if name in found and not found[name].float().isfinite().all():
            raise UserError(f"checkpoint {str(path)!r} holds numbers that are not finite, in {name!r}")
    for name in statistics:
        if name.endswith("running_var") and (found[name].float() < 0).any():
            raise UserError(f"checkpoint {str(path)!r} holds variances below 0, in {name!r}")


def _check_fit(found: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Raise UserError for weights that are missing, not expected, of another shape, or converted to whole numbers."""
    missing = [name for name in expected if name not in found and not name.endswith(OPTIONAL)]
    surplus = [name for name in found if name not in expected and not name.endswith(OPTIONAL)]
    shapes = [
        f"{name} is {tuple(found[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    kinds = [
        f"{name} is {found[name].dtype}, the model's is {value.dtype}"
        for name, value in expected.items()
        if name in found and value.is_floating_point() and not found[name].is_floating_point()
    ]
    problems = [
        f"{what}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for what, keys in (
            ("missing", missing),
            ("not expected", surplus),
            ("other shape", shapes),
            ("no numbers of floating point", kinds),
        )
        if keys
    ]
    if problems:
        raise UserError(f"checkpoint {str(path)!r} does not fit the model; " + "; ".join(problems))
