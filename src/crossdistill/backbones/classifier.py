"""The classifier of a plain network, and how many classes stored weights have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from crossdistill.backbones._probe import probe_images, record
from crossdistill.backbones.args import WEIGHTS_FILE
from crossdistill.backbones.checkpoint import matching_weights, read_weights
from crossdistill.errors import UserError

_TORCHVISION_CLASSES = 1000


def is_classifier(module: nn.Module, num_classes: int) -> bool:
    """Return whether a layer can be a classifier of so many classes."""
    if isinstance(module, nn.Linear):
        return module.out_features == num_classes
    return isinstance(module, nn.Conv2d) and module.out_channels == num_classes and module.kernel_size == (1, 1)


def classifier_names(model: nn.Module, num_classes: int, in_chans: int, img_size: int) -> tuple[str, ...]:
    """Return the names of the classifier, or of several heads. Raises UserError for a network without one."""
    ask = getattr(model, "get_classifier", None)
    if callable(ask):
        heads = ask()
        found = heads if isinstance(heads, tuple | list) else [heads]
        names = tuple(name for name, module in model.named_modules() if any(module is head for head in found))
    else:
        images = probe_images(model, in_chans, img_size)
        calls, _ = record(model, lambda: model(images), lambda inputs, output: None)
        names = tuple(call.name for call in reversed(calls) if is_classifier(call.module, num_classes))[:1]
    if not names:
        raise UserError(f"{type(model).__name__} has no classifier with {num_classes} outputs")
    return names


def pretrained_classes(name: str) -> int | None:
    """Return the classes of a model's pretrained weights, 0 for a headless one; None where they are not known."""
    if name.startswith("torchvision:"):
        return _TORCHVISION_CLASSES
    if name.startswith(("hf-hub:", "local-dir:")):
        with torch.device("meta"):
            return int(timm.create_model(name).num_classes)
    cfg: Any = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return None if cfg is None else int(cfg.num_classes)


def stored_classes(model: nn.Module, checkpoint: str | Path, in_chans: int, img_size: int) -> int:
    """Return the classes that a file of weights for `model` (built with one class) has; 0 for a headless file.

    Raises UserError for a file that cannot be read.
    """
    path = Path(checkpoint)
    stored = matching_weights(read_weights(path / WEIGHTS_FILE if path.is_dir() else path), model.state_dict())
    sizes = {_rows(stored, name) for name in classifier_names(model, 1, in_chans, img_size)}
    return max(sizes)


def _rows(weights: Mapping[str, Tensor], name: str) -> int:
    weight = weights.get(f"{name}.weight")
    return 0 if weight is None else len(weight)
