"""Find the classifier and the stages of a module among the recorded calls of its parts."""

import math
from typing import Any

from torch import Tensor, nn

from crossdistill.backbones._probe import Call
from crossdistill.backbones.stages import STAGES, choose_stages, proportional_cuts
from crossdistill.errors import UserError

Shape = tuple[int, ...]


def output_shape(inputs: tuple[Any, ...], output: Any) -> Shape | None:
    """Return the shape of what a module returned; None where that is not a tensor."""
    return tuple(output.shape) if isinstance(output, Tensor) else None


def _side(shape: Shape) -> int:
    """Return the cells along one side of a square map, 0 where the shape is not such a map."""
    if len(shape) != 4:
        return 0
    if shape[2] == shape[3]:
        return shape[2]
    return shape[1] if shape[1] == shape[2] else 0


def find_classifier(calls: list[Call[Shape | None]], name: str, num_classes: int) -> Call[Shape | None]:
    """Return the last call of a layer that can be the classifier. Raises UserError where there is none."""
    for call in reversed(calls):
        if is_classifier(call.module, num_classes):
            return call
    raise UserError(
        f"model {name!r} has no Linear or 1x1 Conv2d with {num_classes} outputs, so its embedding cannot be read; "
        "add such a layer at the end"
    )


def is_classifier(module: nn.Module, num_classes: int) -> bool:
    """Return whether a layer can be a classifier of `num_classes` classes."""
    if isinstance(module, nn.Linear):
        return module.out_features == num_classes
    return isinstance(module, nn.Conv2d) and module.out_channels == num_classes and module.kernel_size == (1, 1)


def find_stages(calls: list[Call[Shape | None]]) -> tuple[str, ...]:
    """Return the names of the four modules whose outputs are the stages. Raises UserError where there are none."""
    pools = [i for i, call in enumerate(calls) if isinstance(call.module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)]
    if pools:
        calls = calls[: pools[-1]]
    # On the main path no later map is larger: this leaves out side branches such as squeeze-excitation.
    path: list[tuple[str, int]] = []
    for call in reversed(calls):
        side = _side(call.value or ())
        if side and (not path or side >= path[-1][1]):
            path.append((call.name, side))
    path.reverse()
    if len({side for _, side in path}) >= STAGES:
        return tuple(path[i][0] for i in choose_stages([-side for _, side in path]))
    blocks = _equal_blocks(calls)
    if len(blocks) >= STAGES:
        return tuple(blocks[i] for i in proportional_cuts(len(blocks)))
    raise UserError("it has neither four resolutions nor four equal blocks of tokens or maps")


def _equal_blocks(calls: list[Call[Shape | None]]) -> list[str]:
    groups: dict[tuple[str, Shape], list[str]] = {}
    for call in calls:
        shape = call.value or ()
        if _side(shape) or len(shape) == 3:
            parent = call.name.rpartition(".")[0]
            groups.setdefault((parent, shape), []).append(call.name)
    return max(groups.values(), key=lambda names: (len(names), -names[0].count(".")), default=[])


def read_layouts(calls: list[Call[Shape | None]], model: nn.Module) -> list[str | int]:
    """Return for each stage "NCHW", "NHWC", or the number of prefix tokens before its patches."""
    shapes = [call.value or () for call in calls]
    maps = [shape for shape in shapes if len(shape) == 4]
    clear = ["NCHW" if s[2] == s[3] else "NHWC" for s in maps if (s[1] == s[2]) != (s[2] == s[3])]
    # A map whose channels equal its side could be either; the other maps decide.
    usual = max(set(clear), key=clear.count) if clear else "NCHW"
    layouts: list[str | int] = []
    for call, shape in zip(calls, shapes, strict=True):
        if len(shape) == 4:
            plain, last = shape[2] == shape[3], shape[1] == shape[2]
            layouts.append(usual if plain == last else "NCHW" if plain else "NHWC")
        elif len(shape) == 3:
            layouts.append(_prefix_tokens(shape[1], model))
        else:
            raise UserError(f"stage {call.name!r} returns {shape}; expected a map (B, C, H, W) or tokens (B, L, D)")
    return layouts


def _prefix_tokens(length: int, model: nn.Module) -> int:
    own = getattr(model, "num_prefix_tokens", None)
    for prefix in (own,) if isinstance(own, int) else (0, 1, 2):
        if length > prefix and math.isqrt(length - prefix) ** 2 == length - prefix:
            return prefix
    raise UserError(f"{length} tokens are not a square grid after 0, 1 or 2 prefix tokens")
