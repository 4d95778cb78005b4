"""From a name to a `Backbone`."""

import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from crossdistill.backbones.base import Backbone
from crossdistill.backbones.checkpoint import load_weights
from crossdistill.backbones.hooked_backbone import HookedBackbone
from crossdistill.backbones.small_stem import SMALL_STEM, remove_strides, strided_modules
from crossdistill.backbones.timm_backbone import TimmBackbone
from crossdistill.errors import UserError, unknown

WEIGHTS_FILE = "student.safetensors"
CONFIG_FILE = "config.json"
_SMALL_GRID = 8
"""Patches along a side that a plain transformer gets with small_images."""
_SMALL_LAST = 4
"""Cells along a side that the last map of a hierarchical network gets with small_images; half as many where a patch
embedding, which keeps patches of at least 2 pixels, makes the first map."""


def create_backbone(
    name: str,
    num_classes: int,
    img_size: int | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    *,
    small_images: bool = False,
    stages: Sequence[str] | None = None,
    **model_args: Any,
) -> Backbone:
    """Build any image classifier as a `Backbone`.

    `name` is a timm model, "torchvision:<name>", or "package.module:factory" (a callable that gives
    an `nn.Module`; it is passed those of num_classes, in_chans and img_size that it takes).
    `img_size` in pixels (None: the model's own); `checkpoint` a safetensors or torch file, or a
    finished run's folder; `small_images` gives a convolutional network a stem without early strides
    and a transformer a fitting patch size; `stages` names four modules where they cannot be found;
    `model_args` go to the model's constructor. Raises UserError for an unknown name and for a model
    or checkpoint that does not fit.
    """
    for what, number in (("num_classes", num_classes), ("img_size", img_size), ("in_chans", in_chans)):
        if number is not None and number < 1:
            raise UserError(f"{what} is {number}; it must be at least 1")
    recipe = dict(
        name=name,
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        small_images=small_images,
        stages=None if stages is None else list(stages),
        **({"model_args": model_args} if model_args else {}),
    )
    if name.startswith("torchvision:") or (":" in name and not name.startswith(("hf-hub:", "local-dir:"))):
        size = img_size or 224
        if name.startswith("torchvision:"):
            model = _torchvision_model(name, num_classes, img_size, pretrained, model_args)
        else:
            model = _own_model(name, num_classes, size, in_chans, model_args)
        if small_images:
            remove_strides(model, strided_modules(model, in_chans, size, _SMALL_LAST))
    else:
        model, size = _timm_model(name, num_classes, img_size, in_chans, pretrained, small_images, model_args)
    if checkpoint is not None:
        path = Path(checkpoint)
        if path.is_dir():
            _check_recipe(recipe, path)
            path = path / WEIGHTS_FILE
        load_weights(model, path)
    backbone: Backbone
    if stages is not None or (":" in name and not hasattr(model, "forward_intermediates")):
        backbone = HookedBackbone(model, name, size, in_chans, num_classes, stages)
    else:
        backbone = TimmBackbone(model, name, size, in_chans)
    backbone.recipe = {**recipe, "img_size": size}
    return backbone


def load_backbone(folder: str | Path) -> Backbone:
    """Load the student that a finished run left in `folder`, with its own name, size and classes.

    Raises UserError for a folder that holds none.
    """
    recipe = read_recipe(folder)
    return create_backbone(checkpoint=folder, **recipe.pop("model_args", {}), **recipe)


def read_recipe(folder: str | Path) -> dict[str, Any]:
    """Read the arguments of `create_backbone` that the student in `folder` was built with. Raises UserError."""
    path = Path(folder) / CONFIG_FILE
    try:
        recipe = json.loads(path.read_text())["crossdistill"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{str(folder)!r} is no finished run: it has no {CONFIG_FILE} written by crossdistill"
        ) from error
    return dict(recipe)


def _check_recipe(recipe: dict[str, Any], folder: Path) -> None:
    """Refuse weights of a run whose network differs in what the weights' shapes do not show."""
    stored = read_recipe(folder)
    for key in ("name", "small_images", "model_args"):
        if stored.get(key) != recipe.get(key):
            raise UserError(
                f"the model in {str(folder)!r} was built with {key}={stored.get(key)!r}, this one with "
                f"{recipe.get(key)!r}; build it alike, or use load_backbone"
            )


def _timm_model(
    name: str,
    num_classes: int,
    img_size: int | None,
    in_chans: int,
    pretrained: bool,
    small_images: bool,
    model_args: dict[str, Any],
) -> tuple[nn.Module, int]:
    if not name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    wanted = dict(num_classes=num_classes, in_chans=in_chans, **model_args)
    if not small_images:
        model = _create(name, wanted, {"img_size": img_size}, pretrained)
        return model, img_size or int(model.pretrained_cfg["input_size"][-1])
    with torch.device("meta"):
        outline = _create(name, wanted, {"img_size": img_size}, False)
    size = img_size or int(outline.pretrained_cfg["input_size"][-1])
    strides = [int(info["reduction"]) for info in outline.feature_info]
    if len(set(strides)) == 1:
        patch = max(1, size // _SMALL_GRID)
    else:
        patch = max(2, strides[0] * size // (_SMALL_LAST * strides[-1]))
    extras: dict[str, int | None] = {"img_size": img_size}
    if "patch_size" not in model_args:
        extras["patch_size"] = min(patch, strides[0])
    model = _create(name, wanted, extras, pretrained)
    if [int(info["reduction"]) for info in model.feature_info] != strides or "patch_size" in model_args:
        return model, size
    if len(set(strides)) == 1 and strides[0] > patch:
        raise UserError(
            f"small_images: model {name!r} takes no patch_size, so its {strides[0]} px patches stay; use a larger "
            "img_size, or its class as 'package.module:Class' with model_args"
        )
    names = strided_modules(outline, in_chans, size, _SMALL_LAST)
    if names:
        stem = {"base": name, "strided": names}
        model = _create(SMALL_STEM, {**wanted, **stem}, {"img_size": img_size}, pretrained)
    return model, size


def _create(name: str, wanted: dict[str, Any], optional: dict[str, Any], pretrained: bool) -> Any:
    return _call(partial(timm.create_model, name, pretrained=pretrained), name, wanted, optional)


def _call(factory: Callable[..., Any], name: str, wanted: dict[str, Any], optional: dict[str, Any]) -> Any:
    """Call a model's factory with those of the optional arguments that it takes. Raises UserError."""
    optional = {key: value for key, value in optional.items() if value is not None}
    while True:
        try:
            return factory(**wanted, **optional)
        except TypeError as error:
            refused = next((key for key in optional if f"'{key}'" in str(error)), None)
            if refused is None:
                raise UserError(f"model {name!r} does not take these arguments: {error}") from error
            optional.pop(refused)
        except (AssertionError, OSError, RuntimeError, ValueError) as error:
            raise UserError(f"model {name!r} cannot be built with { ({**wanted, **optional}) }: {error}") from error


def _torchvision_model(
    name: str, num_classes: int, img_size: int | None, pretrained: bool, model_args: dict[str, Any]
) -> nn.Module:
    short = name.partition(":")[2]
    known = torchvision.models.list_models(module=torchvision.models)
    if short not in known:
        raise unknown("torchvision model", short, known)
    if pretrained and num_classes != 1000:
        raise UserError(
            f"{name!r}: torchvision's pretrained heads have 1000 classes, the data {num_classes}; build it without "
            "pretrained and load a checkpoint"
        )
    factory = partial(torchvision.models.get_model, short, weights="DEFAULT" if pretrained else None)
    return _call(factory, name, {"num_classes": num_classes, **model_args}, {"image_size": img_size})


def _own_model(name: str, num_classes: int, img_size: int, in_chans: int, model_args: dict[str, Any]) -> nn.Module:
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"model {name!r} cannot be imported: {error}") from error
    taken = inspect.signature(factory).parameters
    offered = dict(num_classes=num_classes, in_chans=in_chans, img_size=img_size)
    model = _call(factory, name, {**{key: value for key, value in offered.items() if key in taken}, **model_args}, {})
    if not isinstance(model, nn.Module):
        raise UserError(f"{name!r} gave {type(model).__name__}, not an nn.Module")
    return model
