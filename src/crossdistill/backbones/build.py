"""Build a `Backbone` from a name."""

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from crossdistill.backbones.args import CONFIG_FILE, BackboneArgs, read_args
from crossdistill.backbones.base import Backbone
from crossdistill.backbones.classifier import pretrained_classes, stored_classes
from crossdistill.backbones.hooked_backbone import HookedBackbone
from crossdistill.backbones.networks import OTHER_SIZE, build_network
from crossdistill.backbones.sources import check_known, plain_args
from crossdistill.backbones.starting_weights import load_start, renew_classifier
from crossdistill.backbones.stored import check_size
from crossdistill.backbones.timm_backbone import TimmBackbone
from crossdistill.backbones.transformers_backbone import TransformersBackbone
from crossdistill.backbones.transformers_network import (
    VisionNetwork,
    absolute_name,
    build_transformers,
    transformers_classes,
    transformers_size,
)
from crossdistill.config.code import check_named_code, is_code, is_source, is_transformers
from crossdistill.config.validation import validated
from crossdistill.errors import UserError, first_line
from crossdistill.image_size import ImageSize, image_size


def create_backbone(
    name: str,
    num_classes: int,
    img_size: ImageSize | str | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    *,
    checkpoint_key: str | None = None,
    small_images: bool = False,
    stages: Sequence[str] | None = None,
    new_head: bool = False,
    **model_args: Any,
) -> Backbone:
    """Build any image network as a `Backbone`.

    `name` is a timm model, "torchvision:<name>", "hf:<name or folder>" (transformers, always with its weights), or
    "package.module:factory" (a callable that returns an `nn.Module`; those of num_classes, in_chans and img_size that
    it accepts are passed). `num_classes` 0 builds a network without a classifier. `img_size` in pixels: a side, or
    (height, width) (None: the model's own); `checkpoint` a safetensors or torch file, or the folder of a finished run;
    `checkpoint_key` chooses one of several networks in the file; `small_images` builds a convolutional network without
    early strides and a transformer with a small patch size; `stages` names four modules where they cannot be found;
    `new_head` keeps all weights of the checkpoint, or the pretrained ones, but those of the classifier, which is
    trained anew; `model_args` go to the model's constructor. Raises UserError for an unknown name and for a model or
    checkpoint that does not fit.
    """
    given = dict(
        name=_checked_name(name),
        num_classes=_plain(num_classes),
        img_size=img_size,
        in_chans=_plain(in_chans),
        small_images=small_images,
        stages=None if stages is None else list(stages),
        model_args=model_args,
    )
    args: BackboneArgs = validated(BackboneArgs, given, "create_backbone: ")
    stored = is_transformers(args.name)
    model, size = build_transformers(args, new_head=new_head) if stored else build_network(args, pretrained)
    args = plain_args(args)
    if new_head and pretrained and not stored and num_classes and checkpoint is None:
        renew_classifier(model, args, size)
    kept = (pretrained or stored) and not new_head
    stated = (getattr(model, "pretrained_cfg", None) or {}).get("label_names") if kept else None
    part = note = ""
    if checkpoint is not None:
        whole = partial(outline, args.name, 1, size, in_chans=in_chans, small_images=small_images, **args.model_args)
        start = load_start(model, Path(checkpoint), args, size, new_head=new_head, key=checkpoint_key, whole=whole)
        stated, part, note = start
    backbone = _wrap(model, replace(args, img_size=size), size)
    if isinstance(stated, list | tuple) and len(stated) == num_classes:
        backbone.class_names = tuple(str(name) for name in stated)
    elif stated and num_classes and checkpoint is not None:
        note = f"{len(stated)} class names are stated for {num_classes} classes: they are not used"
    backbone.weights_part = part
    backbone.note = "; ".join(text for text in (backbone.note, note) if text)
    return backbone


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise UserError(
            f"name is a {type(name).__name__}; give the name of a model, or 'package.module:factory' for a function "
            "that returns your own network"
        )
    return absolute_name(name)


def _plain(number: Any) -> Any:
    """Return a whole number of numpy as Python's, and anything else as it is."""
    return int(number) if isinstance(number, np.integer) else number


def _wrap(model: nn.Module, args: BackboneArgs, size: ImageSize) -> Backbone:
    """Make the backbone of a plain network: by timm's interface where it has that, else by hooks."""
    name, stages = args.name, args.stages
    backbone: Backbone
    plain = not isinstance(model, VisionNetwork) and not hasattr(model, "forward_intermediates")
    if stages is not None or (":" in name and plain):
        backbone = HookedBackbone(model, name, size, args.in_chans, args.num_classes, stages)
    elif isinstance(model, VisionNetwork):
        backbone = TransformersBackbone(model, name, size, args.in_chans)
    else:
        backbone = TimmBackbone(model, name, size, args.in_chans)
    backbone.args = args
    return backbone


def classes_of_weights(
    name: str,
    img_size: ImageSize | str | None = None,
    in_chans: int = 3,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    **arguments: Any,
) -> int | None:
    """Return the classes of a model's pretrained weights, or of those in a file; 0 without a classifier.

    None where pretrained weights do not state them. Raises UserError for a name or a file that cannot be read.
    """
    if checkpoint is None:
        return transformers_classes(name) if is_transformers(name) else pretrained_classes(name)
    backbone = outline(name, 1, img_size, in_chans=in_chans, **arguments)
    return stored_classes(backbone.model, name, checkpoint, checkpoint_key, in_chans, backbone.img_size)


def from_args(args: BackboneArgs, checkpoint: str | Path | None = None) -> Backbone:
    """Build the backbone that has these arguments. Raises UserError."""
    values = {field.name: getattr(args, field.name) for field in fields(args)}
    model_args = values.pop("model_args")
    return create_backbone(checkpoint=checkpoint, **model_args, **values)


def outline(name: str, num_classes: int, img_size: ImageSize | str | None = None, **arguments: Any) -> Backbone:
    """Build a model without memory for its weights, where that is possible; for its spec, size and cost."""
    build = partial(create_backbone, name, num_classes, img_size, **arguments)
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError, UserError):
        # Some constructors compute with values, which meta tensors do not have.
        return build()


def own_img_size(name: str) -> ImageSize:
    """Return the input size that a model is built for by default. Raises UserError for an unknown name."""
    if is_source(name):
        return create_backbone(name, 1).img_size
    if is_transformers(name):
        return transformers_size(name)
    if ":" in name:
        return OTHER_SIZE
    check_known(name)
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"model {name!r}: {first_line(error)}") from error
    return OTHER_SIZE if cfg is None else image_size(cfg.input_size[-2:])


def load_backbone(folder: str | Path, *, trust_code: bool = False) -> Backbone:
    """Load the student of a finished run from its folder, with its own name, size and classes.

    A folder whose model is code ("package.module:factory") is loaded only with `trust_code`: its name is imported and
    called. Raises UserError for such a folder without it, and for one that is not a finished run.
    """
    args = read_args(folder)
    check_named_code([args.name], str(Path(folder) / CONFIG_FILE), (), trust=trust_code)
    if not is_code(args.name):  # code that is trusted may keep what it builds, also without memory
        check_size(args, Path(folder))
    return from_args(args, folder)
