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


def _fits(grid: tuple[int, int], sides: tuple[int, int]) -> bool:
    """Return whether rows and columns of a grid have the proportions of an image, up to one rounded cell."""
    return abs(grid[0] * sides[1] - grid[1] * sides[0]) < max(sides)


def token_grid(count: int, sides: tuple[int, int]) -> tuple[int, int] | None:
    """Return rows and columns of a number of tokens that cover an image; None where they cannot."""
    if count < 1:
        return None
    rows = round(math.sqrt(count * sides[0] / sides[1]))
    near = sorted(range(max(1, rows - 1), rows + 2), key=lambda one: abs(one - rows))
    grids = [(one, count // one) for one in near if count % one == 0]
    return next((grid for grid in grids if _fits(grid, sides)), None)


def _side(shape: Shape, sides: tuple[int, int]) -> int:
    """Return the rows of a map with the image's proportions, 0 where the shape is not such a map."""
    if len(shape) != 4:
        return 0
    if _fits((shape[2], shape[3]), sides):
        return shape[2]
    return shape[1] if _fits((shape[1], shape[2]), sides) else 0


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


def find_stages(calls: list[Call[Shape | None]], sides: tuple[int, int]) -> tuple[str, ...]:
    """Return the names of the four modules whose outputs are the stages, for images of these sides.

    Raises UserError where there are none.
    """
    pools = [i for i, call in enumerate(calls) if isinstance(call.module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)]
    if pools:
        calls = calls[: pools[-1]]
    # On the main path no later map is larger: this leaves out side branches such as squeeze-excitation.
    path: list[tuple[str, int]] = []
    for call in reversed(calls):
        side = _side(call.value or (), sides)
        if side and (not path or side >= path[-1][1]):
            path.append((call.name, side))
    path.reverse()
    if len({side for _, side in path}) >= STAGES:
        return tuple(path[i][0] for i in choose_stages([-side for _, side in path]))
    blocks = _equal_blocks(calls, sides)
    if len(blocks) >= STAGES:
        return tuple(blocks[i] for i in proportional_cuts(len(blocks)))
    raise UserError("it has neither four resolutions nor four equal blocks of tokens or maps")


def _equal_blocks(calls: list[Call[Shape | None]], sides: tuple[int, int]) -> list[str]:
    groups: dict[tuple[str, Shape], list[str]] = {}
    for call in calls:
        shape = call.value or ()
        if _side(shape, sides) or len(shape) == 3:
            parent = call.name.rpartition(".")[0]
            groups.setdefault((parent, shape), []).append(call.name)
    return max(groups.values(), key=lambda names: (len(names), -names[0].count(".")), default=[])


def read_layouts(calls: list[Call[Shape | None]], model: nn.Module, sides: tuple[int, int]) -> list[str | int]:
    """Return for each stage "NCHW", "NHWC", or the number of prefix tokens before its patches."""
    shapes = [call.value or () for call in calls]
    maps = [shape for shape in shapes if len(shape) == 4]
    fits = [(_fits((shape[2], shape[3]), sides), _fits((shape[1], shape[2]), sides)) for shape in maps]
    clear = ["NCHW" if plain else "NHWC" for plain, last in fits if plain != last]
    # A map whose channels equal its side could be either; the other maps decide.
    usual = max(set(clear), key=clear.count) if clear else "NCHW"
    layouts: list[str | int] = []
    for call, shape in zip(calls, shapes, strict=True):
        if len(shape) == 4:
            plain, last = _fits((shape[2], shape[3]), sides), _fits((shape[1], shape[2]), sides)
            layouts.append(usual if plain == last else "NCHW" if plain else "NHWC")
        elif len(shape) == 3:
            layouts.append(_prefix_tokens(shape[1], model, sides))
        else:
            raise UserError(f"stage {call.name!r} returns {shape}; expected a map (B, C, H, W) or tokens (B, L, D)")
    return layouts


def _prefix_tokens(length: int, model: nn.Module, sides: tuple[int, int]) -> int:
    own = getattr(model, "num_prefix_tokens", None)
    prefixes = (own,) if isinstance(own, int) else (0, 1, 2)
    grids = {prefix: grid for prefix in prefixes if (grid := token_grid(length - prefix, sides)) is not None}
    # A grid with exactly the proportions of the image comes before one with a rounded cell.
    exact = [prefix for prefix, (rows, columns) in grids.items() if rows * sides[1] == columns * sides[0]]
    if grids:
        return (exact or list(grids))[0]
    kind = "a square grid" if sides[0] == sides[1] else f"a grid of {sides[0]} x {sides[1]} pixels"
    raise UserError(f"{length} tokens are not {kind} after 0, 1 or 2 prefix tokens")
