"""The architecture of networks that timm reads from a folder or a repository of a hub."""

from dataclasses import replace

import timm
import torch
import torchvision

from crossdistill.backbones.args import BackboneArgs
from crossdistill.backbones.transformers_network import absolute_name
from crossdistill.config.code import is_source
from crossdistill.errors import UserError, kind_and_line, unknown


def check_known(name: str) -> None:
    """Raise UserError for the name of a model that neither timm nor torchvision has; other kinds are not looked at."""
    kind, _, short = name.partition(":")
    if kind == "torchvision":
        known = torchvision.models.list_models(module=torchvision.models)
        if short not in known:
            raise unknown("torchvision model", short, known)
    elif ":" not in name and not timm.is_model(name):
        raise unknown("model", name, timm.list_models())


def plain_name(name: str) -> str:
    """Return the name that a backbone of this name keeps: for a place that timm reads, its architecture.

    Raises UserError.
    """
    return plain_args(BackboneArgs(absolute_name(name), 0)).name


def plain_args(args: BackboneArgs) -> BackboneArgs:
    """Return the arguments that build the same network without the place it was read from. Raises UserError."""
    if not is_source(args.name):
        return args
    try:
        with torch.device("meta"):
            model = timm.create_model(args.name)
    except Exception as error:  # a file that anyone can have written
        raise UserError(f"model {args.name!r} cannot be read ({kind_and_line(error)})") from error
    decided = ("num_classes", "in_chans", "img_size")
    stated = {key: value for key, value in model._model_args.items() if key not in decided}
    return replace(args, name=model.pretrained_cfg["architecture"], model_args={**stated, **args.model_args})
