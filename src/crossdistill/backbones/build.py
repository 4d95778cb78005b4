"""Build a `Backbone` from a name."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch

from crossdistill.backbones.args import WEIGHTS_FILE, BackboneArgs, read_args, read_class_names
from crossdistill.backbones.base import Backbone
from crossdistill.backbones.checkpoint import load_weights
from crossdistill.backbones.hooked_backbone import HookedBackbone
from crossdistill.backbones.networks import OTHER_SIZE, build_other, build_timm
from crossdistill.backbones.timm_backbone import TimmBackbone
from crossdistill.config.validation import validated
from crossdistill.errors import UserError, first_line, unknown


def create_backbone(
    name: str,
    num_classes: int,
    img_size: int | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    *,
    checkpoint_key: str | None = None,
    small_images: bool = False,
    stages: Sequence[str] | None = None,
    **model_args: Any,
) -> Backbone:
    """Build any image network as a `Backbone`.

    `name` is a timm model, "torchvision:<name>", or "package.module:factory" (a callable that returns an `nn.Module`;
    those of num_classes, in_chans and img_size that it accepts are passed). `num_classes` 0 builds a network without a
    classifier. `img_size` in pixels (None: the model's own); `checkpoint` a safetensors or torch file, or the folder of
    a finished run; `checkpoint_key` chooses one of several networks in the file; `small_images` builds a convolutional
    network without early strides and a transformer with a small patch size; `stages` names four modules where they
    cannot be found; `model_args` go to the model's constructor.
    Raises UserError for an unknown name and for a model or checkpoint that does not fit.
    """
    given = dict(
        name=name,
        num_classes=num_classes,
        img_size=img_size,
        in_chans=in_chans,
        small_images=small_images,
        stages=None if stages is None else list(stages),
        model_args=model_args,
    )
    args: BackboneArgs = validated(BackboneArgs, given, "create_backbone: ")
    own = name.startswith("torchvision:") or (":" in name and not name.startswith(("hf-hub:", "local-dir:")))
    model, size = (build_other if own else build_timm)(args, pretrained)
    names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") if pretrained else None
    part = ""
    if checkpoint is not None:
        path = Path(checkpoint)
        names = read_class_names(path) if path.is_dir() else None
        if path.is_dir():
            _check_args(args, path)
            path = path / WEIGHTS_FILE
        loaded = load_weights(model, path, key=checkpoint_key)
        names, part = names or loaded.class_names, loaded.part
    backbone: Backbone
    if stages is not None or (":" in name and not hasattr(model, "forward_intermediates")):
        backbone = HookedBackbone(model, name, size, in_chans, num_classes, stages)
    else:
        backbone = TimmBackbone(model, name, size, in_chans)
    backbone.args = replace(args, img_size=size)
    if isinstance(names, list | tuple) and len(names) == num_classes:
        backbone.class_names = tuple(str(name) for name in names)
    backbone.weights_part = part
    return backbone


def from_args(args: BackboneArgs, checkpoint: str | Path | None = None) -> Backbone:
    """Build the backbone that has these arguments. Raises UserError."""
    values = {field.name: getattr(args, field.name) for field in fields(args)}
    model_args = values.pop("model_args")
    return create_backbone(checkpoint=checkpoint, **model_args, **values)


def outline(name: str, num_classes: int, img_size: int | None = None, **arguments: Any) -> Backbone:
    """Build a model without memory for its weights, where it can be built so; for its spec, size and cost."""
    build = partial(create_backbone, name, num_classes, img_size, **arguments)
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError, UserError):
        # Some constructors compute with values, which meta tensors do not have.
        return build()


def own_img_size(name: str) -> int:
    """Return the side in pixels that a model is built for by default. Raises UserError for an unknown name."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return create_backbone(name, 1).img_size
    if ":" in name:
        return OTHER_SIZE
    if not timm.is_model(name):
        raise unknown("model", name, timm.list_models())
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"model {name!r}: {first_line(error)}") from error
    return OTHER_SIZE if cfg is None else int(cfg.input_size[-1])


def load_backbone(folder: str | Path) -> Backbone:
    """Load the student of a finished run from its folder, with its own name, size and classes.

    Raises UserError for a folder that is no finished run.
    """
    return from_args(read_args(folder), folder)


def _check_args(args: BackboneArgs, folder: Path) -> None:
    """Raise UserError for the weights of a network that differs in what the shapes of weights do not show."""
    stored = read_args(folder)
    for key in ("name", "small_images", "model_args"):
        before, now = getattr(stored, key), getattr(args, key)
        # In the file a tuple is a list.
        if json.dumps(before) != json.dumps(now, default=str):
            raise UserError(
                f"the model in {str(folder)!r} was built with {key}={before!r}, this one with {now!r}; build it with "
                "the same value, or use load_backbone"
            )
