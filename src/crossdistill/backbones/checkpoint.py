"""Load weights from a file into a model: all of them, or an error that names the keys."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from crossdistill.errors import UserError, first_line

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which common trainers keep the weights; averaged ones first, as in timm."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors or torch file (tensors only, no code is run) and unwrap it. Raises UserError."""
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r} does not exist")
    try:
        loaded: Any
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no checkpoint can raise anything
        reason = first_line(error)
        raise UserError(
            f"checkpoint {str(path)!r} cannot be read; is it truncated or of another format? ({reason})"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    weights = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, dict) else {}
    if not weights:
        raise UserError(f"checkpoint {str(path)!r} holds no weights")
    return weights


def load_weights(model: nn.Module, path: Path, prefix: str | None = None, without: Sequence[str] = ()) -> None:
    """Load a checkpoint file into `model`, all of its weights but those of the modules named in `without`.

    With `prefix`, the weights are those whose names begin with it. Without, a prefix that wrappers put before the names
    (`module.`, `model.`, ...) is found from the names themselves, and weights under other prefixes are ignored. Raises
    UserError for keys that are missing, not expected or of another shape.
    """
    kept = {name: value for name, value in model.state_dict().items() if _inside(name, without)}
    expected = {name: value for name, value in model.state_dict().items() if name not in kept}
    stored = read_weights(path)
    found = matching_weights(stored, expected) if prefix is None else _under(stored, prefix)
    found = {name: value for name, value in found.items() if not _inside(name, without)}
    missing = [k for k in expected if k not in found]
    surplus = [k for k in found if k not in expected]
    shapes = [
        f"{k} is {tuple(found[k].shape)}, the model has {tuple(expected[k].shape)}"
        for k in expected
        if k in found and found[k].shape != expected[k].shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for what, keys in (("missing", missing), ("not expected", surplus), ("other shape", shapes))
        if keys
    ]
    if problems:
        raise UserError(f"checkpoint {str(path)!r} does not fit the model; " + "; ".join(problems))
    model.load_state_dict({**kept, **found})


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def matching_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the prefix that fits the expected names best, without the prefix."""
    cleaned = {key.replace("_orig_mod.", ""): value for key, value in weights.items()}
    if any(key in expected for key in cleaned):
        return cleaned
    prefixes = {key[: -len(name)] for name in expected for key in cleaned if key.endswith("." + name)}
    # The averaged copy (ema.) before the raw one where both fit.
    best = max(prefixes, key=lambda p: (sum(p + name in cleaned for name in expected), "ema" in p, -len(p)), default="")
    return _under(cleaned, best)
