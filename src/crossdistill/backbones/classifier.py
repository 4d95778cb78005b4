"""The classifier of a plain network, and how many classes stored weights have."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import infer_imagenet_subset
from torch import Tensor, nn

from crossdistill.backbones._probe import record_probe
from crossdistill.backbones.args import weights_path
from crossdistill.backbones.checkpoint import inside, stored_weights
from crossdistill.backbones.structure import is_classifier
from crossdistill.config.code import is_source
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize

_LEAST_UNKNOWN = 2000
"""Outputs from which weights are those of a classifier, though timm does not know its set of classes."""
TORCHVISION_CLASSES = 1000
"""Classes of torchvision's pretrained weights."""


def classifier_names(
    model: nn.Module, name: str, num_classes: int, in_chans: int, img_size: ImageSize
) -> tuple[str, ...]:
    """Return the names of the classifier, or of several heads. Raises UserError for a network without one."""
    ask = getattr(model, "get_classifier", None)
    if callable(ask):
        heads = ask()
        found = heads if isinstance(heads, tuple | list) else [heads]
        names = tuple(name for name, module in model.named_modules() if any(module is head for head in found))
    else:
        calls, _ = record_probe(model, name, in_chans, img_size, lambda inputs, output: None)
        names = tuple(call.name for call in reversed(calls) if is_classifier(call.module, num_classes))[:1]
    if not names:
        raise UserError(f"model {name!r} has no classifier with {num_classes} outputs")
    return names


def pretrained_classes(name: str) -> int | None:
    """Return the classes of a model's pretrained weights, 0 for a headless one; None where they are not known."""
    if name.startswith("torchvision:"):
        return TORCHVISION_CLASSES
    if is_source(name):
        with torch.device("meta"):
            return int(timm.create_model(name).num_classes)
    cfg: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None:
        return None
    # timm states the width of CLIP's projection as the number of classes.
    projected = cfg.num_classes < _LEAST_UNKNOWN and infer_imagenet_subset(cfg.to_dict()) is None
    return 0 if projected else int(cfg.num_classes)


def stored_classes(
    model: nn.Module, name: str, checkpoint: str | Path, key: str | None, in_chans: int, img_size: ImageSize
) -> int:
    """Return the classes that a file of weights for a model (built with one class) has; 0 for a headless file.

    Raises UserError for a file that cannot be read.
    """
    path = Path(checkpoint)
    heads = classifier_names(model, name, 1, in_chans, img_size)
    built = model.state_dict()
    body = {weight: value for weight, value in built.items() if not inside(weight, heads)}
    head = {weight: value for weight, value in built.items() if inside(weight, heads)}
    stored = stored_weights(weights_path(path) if path.is_dir() else path, body, model, key, list(head))
    return max((_rows(stored.get(weight), value) for weight, value in head.items()), default=0)


def _rows(stored: Tensor | None, built: Tensor) -> int:
    """Return the classes by a weight in the file and that of one class; 0 where it is not the last layer's."""
    last = stored is not None and built.ndim >= 1 and len(built) == 1 and stored.shape[1:] == built.shape[1:]
    return len(stored) if last and stored is not None else 0
