"""Read a file of weights without running code."""

import argparse
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from crossdistill.errors import UserError, first_line
from crossdistill.files import open_plain

_PLAIN_DTYPES = (bool, np.int8, np.int16, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64)
_DEPTH = 3
"""Mappings within mappings that are looked into."""
_LISTS = ("label_names", "class_names", "classes", "CLASSES")
_NUMBERS = ("class_to_idx", "label2id")
_BY_NUMBER = ("idx_to_class", "id2label")
"""Keys under which training scripts keep the names of the classes: as a list, numbers by name, and names by number."""


def _plain_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return types that trainers put beside weights: making one of them from a file runs no code of the file."""
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    types: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [argparse.Namespace, np.dtype, np.ndarray]
    types += [type(np.dtype(kind)) for kind in _PLAIN_DTYPES]
    for module in ("numpy.core", "numpy._core"):
        types += [(getattr(multiarray, name), f"{module}.multiarray.{name}") for name in ("scalar", "_reconstruct")]
    # A path is only text here, so that one of another system can be read as well.
    for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "PurePath"):
        types += [(pathlib.PurePosixPath, f"{module}.{name}") for module in ("pathlib", "pathlib._local")]
    return types


def read_file(path: Path) -> Any:
    """Read a safetensors or torch file; no code in it is run.

    Beside tensors, a torch file may hold what common trainers put there: Namespaces, paths, numpy numbers. Raises
    UserError for a file that does not exist, is damaged, or would run code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r} does not exist")
    try:
        if _is_safetensors(path):
            return load_file(path)
        # As an open file: newer versions of torch decide by the suffix of a path.
        with torch.serialization.safe_globals(_plain_types()), open_plain(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint can raise anything
        raise UserError(f"checkpoint {str(path)!r} cannot be read; {_reason(error, path)}") from error


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins as safetensors does, whatever its name: a length of eight bytes, then JSON."""
    with open_plain(path) as file:
        start = file.read(9)
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not start.startswith(b"PK"))


def _reason(error: Exception, path: Path) -> str:
    text = str(error)
    if "TorchScript" in text:
        return (
            "it is a TorchScript program, not a file of weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE) makes one"
        )
    unknown = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|Trying to instantiate class) (\S+)", text)
    if unknown is None:
        return f"is it truncated or of another format? ({first_line(error)})"
    if _holds_module(path, unknown.group(1)):
        return (
            f"it holds a whole pickled module ({unknown.group(1)}), which only running its code could read: where that "
            "code is, torch.save(torch.load(FILE, weights_only=False).state_dict(), NEW_FILE) writes the weights alone"
        )
    return (
        f"it holds an object of type {unknown.group(1)}, which only running its code could read: save the weights "
        "alone, torch.save(model.state_dict(), FILE)"
    )


def _holds_module(path: Path, found: str) -> bool:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # files of old formats cannot be listed
        names = [found]
    return any(name.startswith("torch.nn.modules.") for name in names)


def groups_of(loaded: Any, path: tuple[str, ...] = (), depth: int = _DEPTH) -> dict[tuple[str, ...], dict[str, Tensor]]:
    """Return all mappings of names to tensors in the content of a file, by the keys that lead to each."""
    if isinstance(loaded, nn.Module) or not isinstance(loaded, Mapping):
        return {}
    own = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    found = {path: own} if own else {}
    if depth:
        for name, value in loaded.items():
            if isinstance(name, str):
                found |= groups_of(value, (*path, name), depth - 1)
    return found


def tensors_in(loaded: Any, path: str = "", depth: int = _DEPTH) -> dict[str, Tensor]:
    """Return all tensors with a dimension in the content of a file, also those in lists, by their keys with dots."""
    if isinstance(loaded, Tensor):
        return {path: loaded} if loaded.ndim else {}
    if isinstance(loaded, nn.Module) or depth < 0 or not isinstance(loaded, Mapping | list | tuple):
        return {}
    pairs = loaded.items() if isinstance(loaded, Mapping) else enumerate(loaded)
    found: dict[str, Tensor] = {}
    for name, value in pairs:
        found |= tensors_in(value, f"{path}.{name}".lstrip("."), depth - 1)
    return found


def names_in(loaded: Any) -> tuple[tuple[str, ...] | None, str]:
    """Return the class names that a file states beside its weights, in the order of the logits; None without any.

    The text says which names cannot be used, if any. Raises UserError where a file states two different orders.
    """
    stated = list(dict.fromkeys(_stated_names(loaded, _DEPTH)))
    found = [names for names in stated if isinstance(names, tuple)]
    if len(found) > 1:
        raise UserError(f"the checkpoint states its classes twice, as {list(found[0])} and as {list(found[1])}")
    unusable = [key for key in stated if isinstance(key, str)]
    if found or not unusable:
        return (found[0] if found else None), ""
    return None, f"the class numbers in {unusable[0]!r} of the checkpoint are not 0, 1, 2, ...: its names are not used"


def _stated_names(loaded: Any, depth: int) -> Iterator[tuple[str, ...] | str]:
    """Yield all orders of classes that a file states; the key alone where its numbers are no numbers of logits."""
    if not isinstance(loaded, Mapping):
        return
    for key, value in loaded.items():
        names: Any = None
        if key in _LISTS:
            names = value
        elif isinstance(value, Mapping) and key in (*_NUMBERS, *_BY_NUMBER):
            pairs = [(name, number) if key in _NUMBERS else (number, name) for name, number in value.items()]
            numbers = {_whole(number): str(name) for name, number in pairs}
            if numbers.keys() == set(range(len(value))):
                names = [numbers[number] for number in range(len(numbers))]
            elif value:
                yield key
        elif depth:
            yield from _stated_names(value, depth - 1)
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            yield tuple(names)


def _whole(number: Any) -> int | None:
    try:
        return int(number)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
