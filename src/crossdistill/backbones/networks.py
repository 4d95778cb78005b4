"""Build a plain network by its name: one of timm, of torchvision, or the user's own."""

import inspect
import pkgutil
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from crossdistill.backbones.args import BackboneArgs
from crossdistill.backbones.classifier import TORCHVISION_CLASSES, classifier_names
from crossdistill.backbones.small_stem import SMALL_STEM, remove_strides, strided_modules
from crossdistill.backbones.sources import check_known, plain_args
from crossdistill.config.code import is_code
from crossdistill.errors import UserError, first_line, kind_and_line
from crossdistill.image_size import ImageSize, image_size, sides_of

OTHER_SIZE = 224
"""Side in pixels of models that do not state one."""
_SMALL_GRID = 8
"""Patches along a side of a plain transformer with small_images."""
_SMALL_LAST = 4
"""Cells along a side of the last map of a hierarchical network with small_images; half as many where the first map
comes from a patch embedding, whose patches stay at least 2 pixels wide."""


def build_network(args: BackboneArgs, pretrained: bool) -> tuple[nn.Module, ImageSize]:
    """Build a network that is not one of transformers, and return it with the size of its input. Raises UserError."""
    own = args.name.startswith("torchvision:") or is_code(args.name)
    return (build_other if own else build_timm)(args, pretrained)


def build_timm(args: BackboneArgs, pretrained: bool) -> tuple[nn.Module, ImageSize]:
    """Build a timm model, and return it with the size of its input. Raises UserError."""
    name, img_size, model_args = args.name, args.img_size, args.model_args
    check_known(name)
    wanted = dict(num_classes=args.num_classes, in_chans=args.in_chans, **model_args)
    if not args.small_images:
        model = _create(name, wanted, {"img_size": img_size}, pretrained)
        return model, img_size or stated_size(model)
    with torch.device("meta"):
        plan = _create(name, wanted, {"img_size": img_size}, False)
    size = img_size or stated_size(plan)
    side = min(sides_of(size))
    strides = [int(info["reduction"]) for info in plan.feature_info]
    if len(set(strides)) == 1:
        patch = max(1, side // _SMALL_GRID)
    else:
        patch = max(2, strides[0] * side // (_SMALL_LAST * strides[-1]))
    extras: dict[str, ImageSize | None] = {"img_size": img_size}
    if "patch_size" not in model_args:
        extras["patch_size"] = min(patch, strides[0])
    model = _create(name, wanted, extras, pretrained)
    if [int(info["reduction"]) for info in model.feature_info] != strides or "patch_size" in model_args:
        return model, size
    if len(set(strides)) == 1 and strides[0] > patch:
        raise UserError(
            f"small_images: model {name!r} has no argument patch_size, so its {strides[0]} px patches stay; use a "
            "larger img_size, or its class as 'package.module:Class' with model_args"
        )
    names = strided_modules(plan, name, args.in_chans, size, _SMALL_LAST)
    if names:
        stem = {"base": name, "strided": names}
        model = _create(SMALL_STEM, {**wanted, **stem}, {"img_size": img_size}, pretrained)
        plain = plain_args(args)
        model._model_args.update({**plain.model_args, "base": plain.name})
    return model, size


def stated_size(model: Any) -> ImageSize:
    """Return the input size that a timm model states."""
    return image_size([int(side) for side in model.pretrained_cfg["input_size"][-2:]])


def _create(name: str, wanted: dict[str, Any], optional: dict[str, Any], pretrained: bool) -> Any:
    return _call(partial(timm.create_model, name, pretrained=pretrained), name, wanted, optional)


def _call(factory: Callable[..., Any], name: str, wanted: dict[str, Any], optional: dict[str, Any]) -> Any:
    """Call a model's factory with those of the optional arguments that it accepts. Raises UserError."""
    optional = {key: value for key, value in optional.items() if value is not None}
    while True:
        try:
            return factory(**wanted, **optional)
        except TypeError as error:
            refused = next((key for key in optional if f"'{key}'" in str(error)), None)
            if refused is None:
                given = {**wanted, **optional}
                raise UserError(f"model {name!r} does not accept {given} ({first_line(error)})") from error
            optional.pop(refused)
        except Exception as error:  # the code of a model can raise anything
            given = {**wanted, **optional}
            raise UserError(f"model {name!r} cannot be built with {given} ({kind_and_line(error)})") from error


def build_other(args: BackboneArgs, pretrained: bool) -> tuple[nn.Module, ImageSize]:
    """Build a torchvision model or the user's own, and return it with the size of its input. Raises UserError."""
    size = args.img_size or OTHER_SIZE
    torchvisions = args.name.startswith("torchvision:")
    model = _torchvision_model(args, pretrained) if torchvisions else _own_model(args, size)
    if args.small_images:
        remove_strides(model, strided_modules(model, args.name, args.in_chans, size, _SMALL_LAST))
    return model, size


def _torchvision_model(args: BackboneArgs, pretrained: bool) -> nn.Module:
    name, num_classes, img_size = args.name, args.num_classes, args.img_size
    short = name.partition(":")[2]
    check_known(name)
    if pretrained and num_classes not in (0, TORCHVISION_CLASSES):
        raise UserError(
            f"{name!r}: torchvision's pretrained heads have {TORCHVISION_CLASSES} classes, not {num_classes}; build "
            "it without pretrained and load a checkpoint"
        )
    factory = partial(torchvision.models.get_model, short, weights="DEFAULT" if pretrained else None)
    classes = num_classes or TORCHVISION_CLASSES
    model = _call(factory, name, {"num_classes": classes, **args.model_args}, {"image_size": img_size})
    if not num_classes:
        _remove_classifier(model, name, img_size or OTHER_SIZE)
    return model


def _remove_classifier(model: nn.Module, name: str, img_size: ImageSize) -> None:
    """Replace the classifier, the last layer with torchvision's number of classes, by an identity."""
    for classifier in classifier_names(model, name, TORCHVISION_CLASSES, 3, img_size):
        model.set_submodule(classifier, nn.Identity())


def _own_model(args: BackboneArgs, img_size: ImageSize) -> nn.Module:
    name = args.name
    factory, taken = _import_factory(name)
    offered = dict(num_classes=args.num_classes, in_chans=args.in_chans, img_size=img_size)
    passed = {key: value for key, value in offered.items() if key in taken}
    model = _call(factory, name, {**passed, **args.model_args}, {})
    if not isinstance(model, nn.Module):
        raise UserError(f"{name!r} returned {type(model).__name__}, not an nn.Module")
    return model


def _import_factory(name: str) -> tuple[Callable[..., Any], Collection[str]]:
    """Import "package.module:factory", and return it with the names of its parameters. Raises UserError."""
    try:
        factory = pkgutil.resolve_name(name)
    except Exception as error:  # a module can raise anything while it is imported
        raise UserError(f"model {name!r} cannot be imported ({kind_and_line(error)})") from error
    other_class = isinstance(factory, type) and not issubclass(factory, nn.Module)
    if not callable(factory) or isinstance(factory, nn.Module) or other_class:
        kind = type(factory).__name__
        raise UserError(f"{name!r} is of type {kind}; name a class or a function that returns an nn.Module")
    try:
        return factory, inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{name!r}: its parameters cannot be read ({first_line(error)})") from error
