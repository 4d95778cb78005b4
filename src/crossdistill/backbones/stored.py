"""Check the folder of a finished run before its weights are read."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from crossdistill.backbones.args import CONFIG_FILE, BackboneArgs, read_args, weights_path
from crossdistill.backbones.networks import build_network
from crossdistill.config.code import is_transformers
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize, sides_of, written

_HEADER_BYTES = 40
"""A tensor needs at least these in the header of a safetensors file, for its name, type, shape and place."""
_SPARE = 4
"""Constructors may make weights that they replace, so they may make this many times what the file can hold."""


def check_size(args: BackboneArgs, folder: Path) -> None:
    """Raise UserError for a network that is larger than the file of its weights, before memory or time is taken for it.

    It is built without memory, and no further than to several times the size of the file.
    """
    try:
        stored = weights_path(folder).stat().st_size
        largest = max(_whole_numbers(args.model_args), default=0)
        described = largest if largest > stored else _numbers(args, _SPARE * stored)
    except (OSError, NotImplementedError, RuntimeError, UserError):
        return  # a file that cannot be read, and a constructor that computes with values, are seen when it is built
    if described > stored:  # a number needs at least one byte
        raise UserError(
            f"{str(folder / CONFIG_FILE)!r} describes a network of {described:,} numbers or more, but its weights file "
            f"has {stored:,} bytes: one of the two is not that of the run"
        )


def _whole_numbers(value: object) -> Iterator[int]:
    """Yield the whole numbers in arguments, those in lists and mappings too; a count of layers or channels is one."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(part)
    elif isinstance(value, int):
        yield value


def _numbers(args: BackboneArgs, most: int) -> int:
    """Count the numbers of a network's weights; where they need more than `most` bytes, the bytes needed until then."""
    made = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        made += _HEADER_BYTES + (0 if parameter is None else parameter.numel())
        if made > most:
            raise UserError("too many weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            model, _ = build_network(args, pretrained=False)
    except Exception:  # what was made until then decides, whatever the constructor raises
        if made <= most:
            raise
        return made
    finally:
        hook.remove()
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() for tensor in tensors.values())


def check_args(args: BackboneArgs, size: ImageSize, folder: Path) -> None:
    """Raise UserError for a run whose network differs in ways that the shapes of its weights do not show.

    `size` is the input size of the network that takes the weights.
    """
    stored = read_args(folder)
    for key in ("name", "small_images", "model_args"):
        before, now = getattr(stored, key), getattr(args, key)
        # In the file a tuple is a list.
        if json.dumps(before) != json.dumps(now, default=str):
            raise UserError(
                f"the model in {str(folder)!r} was built with {key}={before!r}, this one with {now!r}; build it with "
                "the same value, or use load_backbone"
                + (f" (--model.stem {'small' if before else 'native'})" if key == "small_images" else "")
            )
    if _places_differ(args, stored.img_size, size):
        raise UserError(
            f"the model in {str(folder)!r} was built for {written(stored.img_size or size)} (height x width), this one "
            f"for {written(size)}: its weights for positions have the same number, at other places; give the same size"
        )


def _places_differ(args: BackboneArgs, before: ImageSize | None, size: ImageSize) -> bool:
    """Return whether two input sizes give weights of the same shapes for other positions, as 4 x 1 and 2 x 2 tokens."""
    (height, width), (other_height, other_width) = sides_of(size), sides_of(before or size)
    if (height - other_height) * (width - other_width) >= 0:
        return False  # grids that grow in no side or in both have equal numbers of cells only where they are equal
    if is_transformers(args.name):
        return False  # its weights are those of one size, and it interpolates them itself
    larger = (2 * max(height, other_height), 2 * max(width, other_width))
    return _shapes(args, size) != _shapes(args, larger)


def _shapes(args: BackboneArgs, size: ImageSize) -> dict[str, torch.Size]:
    sized = replace(args, img_size=size)
    try:
        with torch.device("meta"):
            model, _ = build_network(sized, pretrained=False)
    except (NotImplementedError, RuntimeError, UserError):
        model, _ = build_network(sized, pretrained=False)
    return {name: value.shape for name, value in model.state_dict().items()}
