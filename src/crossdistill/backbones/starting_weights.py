"""The weights that a network starts from: a file, a run, or pretrained ones with a new classifier."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from crossdistill.backbones.args import CONFIG_FILE, BackboneArgs, check_export, read_class_names, weights_path
from crossdistill.backbones.base import Backbone
from crossdistill.backbones.checkpoint import Loaded, load_weights
from crossdistill.backbones.classifier import classifier_names
from crossdistill.backbones.networks import build_network
from crossdistill.backbones.stored import check_args
from crossdistill.backbones.structure import is_classifier
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize

_log = logging.getLogger(__name__)


class Start(NamedTuple):
    """The class names, if they are known, the keys that led to the weights, and what of the file has no place."""

    class_names: Any
    part: str
    note: str


def load_start(
    model: nn.Module,
    path: Path,
    args: BackboneArgs,
    size: ImageSize,
    *,
    new_head: bool,
    key: str | None,
    whole: Callable[[], Backbone],
) -> Start:
    """Load a weights file or the model of a run; `whole` builds the network with a classifier. Raises UserError."""
    names = read_class_names(path) if path.is_dir() else None
    if path.is_dir():
        check_args(args, size, path)
        check_export(path)
        if names and args.num_classes and not new_head and len(names) != args.num_classes:
            raise UserError(
                f"{str(path / CONFIG_FILE)!r} is damaged: it names {len(names)} classes, and the network has "
                f"{args.num_classes}"
            )
        path = weights_path(path)
    kinds = _new_layers(model, args, size) if new_head and args.num_classes else [()]
    try:
        loaded, new = _load_without(model, path, key, kinds)
    except UserError as error:
        if not args.num_classes:
            return _load_body(model, path, size, key, error, whole())
        if new_head or not _fits_without_head(model, path, args, size, key):
            raise
        raise UserError(
            f"{error}; all but the classifier fits: new_head=True trains a new one (--model.new-head true, for a "
            "teacher in `crossdistill teacher`)"
        ) from error
    if new:
        _log_new(args, new)
    _log_average(args.name, loaded)
    return Start(None if new else names or loaded.class_names, loaded.part, "" if new or names else loaded.note)


def renew_classifier(model: nn.Module, args: BackboneArgs, size: ImageSize) -> None:
    """Give the classifier of pretrained weights the initial values of a network without them."""
    (layers, *_) = _new_layers(model, args, size)
    fresh, _ = build_network(args, False)
    for layer in layers:
        model.get_submodule(layer).load_state_dict(fresh.get_submodule(layer).state_dict())
    _log_new(args, layers)


def _new_layers(model: nn.Module, args: BackboneArgs, size: ImageSize) -> list[tuple[str, ...]]:
    """Return the names of what is new: the last layers, and where these are a part of it the whole classifier.

    A normalisation or a hidden layer of the classifier is kept where the weights have one (LeViT, CAFormer).
    """
    heads = classifier_names(model, args.name, args.num_classes, args.in_chans, size)
    layers = tuple(
        f"{head}.{name}".rstrip(".")
        for head in heads
        for name, module in model.get_submodule(head).named_modules()
        if is_classifier(module, args.num_classes)
    )
    return [layers, heads] if layers and layers != heads else [heads]


def _log_new(args: BackboneArgs, layers: tuple[str, ...]) -> None:
    _log.warning("%s: new classifier (%s) with %d classes", args.name, ", ".join(layers), args.num_classes)


def _load_without(
    model: nn.Module, path: Path, key: str | None, kinds: Sequence[tuple[str, ...]]
) -> tuple[Loaded, tuple[str, ...]]:
    """Load all weights but those of the first of some kinds of layers with which they fit. Raises UserError."""
    *others, last = kinds
    for layers in others:
        with contextlib.suppress(UserError):
            return load_weights(model, path, key=key, without=layers), layers
    return load_weights(model, path, key=key, without=last), last


def _load_body(
    model: nn.Module, path: Path, size: ImageSize, key: str | None, problem: UserError, whole: Backbone
) -> Start:
    """Load all of a file but its classifier into a network that has none. Raises UserError, the problem found."""
    try:
        heads = classifier_names(whole.model, whole.spec.name, 1, whole.spec.in_chans, size)
        loaded = load_weights(model, path, key=key, without=heads)
    except UserError:
        raise problem from None
    _log_average(whole.spec.name, loaded)
    return Start(None, loaded.part, f"the classifier of the weights ({', '.join(heads)}) is left out")


def _fits_without_head(model: nn.Module, path: Path, args: BackboneArgs, size: ImageSize, key: str | None) -> bool:
    try:
        _load_without(model, path, key, _new_layers(model, args, size))
    except UserError:
        return False
    return True


def _log_average(name: str, loaded: Loaded) -> None:
    if loaded.average:
        _log.warning("%s: %s", name, loaded.average)
