"""Build the vision part of a Hugging Face transformers model, from a name on the hub or a local folder."""

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backbones._probe import Call, cannot_run, evaluating, probe_images, record_probe
from crossdistill.backbones.args import BackboneArgs
from crossdistill.backbones.structure import Shape, find_classifier, is_classifier, output_shape
from crossdistill.backbones.transformers_files import (
    PREFIX,
    is_headed,
    load_body,
    processor_size,
    read_config,
    read_look,
    read_processor,
    vision_config,
)
from crossdistill.config.code import is_transformers
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize, image_size, sides_of, written


class VisionNetwork(nn.Module):
    """A transformers model that takes images (B, C, H, W) and returns logits, or without a classifier the embedding."""

    def __init__(self, body: nn.Module, look: dict[str, Any], size: ImageSize) -> None:
        super().__init__()
        self.body = body
        self.pretrained_cfg = look
        self.classifier: nn.Linear | None = None
        """A new classifier of the embedding; None where the body has its own, or there is none."""
        self.classifier_names: tuple[str, ...] = ()
        """Names of the classifier, or of several whose logits are averaged (distilled DeiT and LeViT)."""
        self.places = 0
        """How many classifiers the body has a place for; the mean of their inputs is the embedding."""
        self.pools = True
        """Whether the body's own pooled output is the embedding, not the mean of its patches."""
        self.prefix_tokens = 0
        config = vision_config(body.config)
        patch = getattr(config, "patch_size", None)
        patches = {patch} if isinstance(patch, int) else set(patch or ())
        self.patch: int | None = patches.pop() if len(patches) == 1 else None
        self.extra: dict[str, Any] = {}
        accepted = inspect.signature(body.forward).parameters
        stated = getattr(config, "image_size", None)
        own = image_size(stated) if isinstance(stated, int | list | tuple) else size
        other = sides_of(own) != sides_of(size)
        interpolates = any(hasattr(module, "interpolate_pos_encoding") for module in body.modules())
        if other and interpolates and not isinstance(own, int):
            raise UserError(
                f"the model has positions for {written(own)} (height x width), and transformers can "
                f"interpolate those of a square alone; use this size in place of {written(size)}"
            )
        if other and "interpolate_pos_encoding" in accepted:
            self.extra["interpolate_pos_encoding"] = True

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...] | None:
        """Return the classifier, or several; None without one."""
        found = tuple(self.get_submodule(name) for name in self.classifier_names)
        return found if len(found) > 1 else next(iter(found), None)

    def run(self, images: Tensor, hidden: bool = False) -> tuple[Tensor, Any]:
        """Return logits or embedding, and the model's own output; `hidden` asks it for the hidden states."""
        images = images.flip(1) if self.pretrained_cfg["reads_bgr"] else images
        output = self.body(pixel_values=images, output_hidden_states=hidden, return_dict=True, **self.extra)
        if output.get("logits") is not None:
            return output.logits, output
        embedding = self._pooled(output, images)
        return (embedding if self.classifier is None else self.classifier(embedding)), output

    def _pooled(self, output: Any, images: Tensor) -> Tensor:
        if self.pools:
            pooled: Tensor = output.pooler_output
            return pooled.flatten(1)
        last: Tensor = output.last_hidden_state
        return last.mean(dim=(2, 3)) if last.ndim == 4 else last[:, self.prefix_tokens :].mean(dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Run images (B, C, H, W)."""
        return self.run(images)[0]


def absolute_name(name: str) -> str:
    """Return a name in which a local folder has its whole path, so that it holds in every working folder."""
    place = Path(name.removeprefix(PREFIX))
    return f"{PREFIX}{place.resolve()}" if is_transformers(name) and place.is_dir() else name


def transformers_classes(name: str) -> int:
    """Return the classes of a model's weights, 0 for a headless one. Raises UserError."""
    config = read_config(name)
    return int(config.num_labels) if is_headed(config) else 0


def transformers_size(name: str) -> ImageSize:
    """Return the size of the images that a model's processor makes. Raises UserError."""
    return processor_size(name, read_config(name), read_processor(name))


def build_transformers(args: BackboneArgs, *, new_head: bool = False) -> tuple[nn.Module, ImageSize]:
    """Build a model with its weights, and return it with the size of its input. Raises UserError.

    The classifier is a new one, on the same embedding, with `new_head` or for another number of classes than that of
    the weights.
    """
    name = args.name
    config, processor = read_config(name), read_processor(name)
    size = args.img_size or processor_size(name, config, processor)
    channels = int(getattr(vision_config(config), "num_channels", 3))
    if args.small_images or args.in_chans != channels:
        other = "small_images changes its layers" if args.small_images else f"it has {channels} channels"
        raise UserError(
            f"model {name!r} is used as its weights are, but {other}; "
            + ("leave it out" if args.small_images else f"give --loader.in-chans {channels}")
        )
    body, pools = load_body(name, config, args.model_args)
    network = VisionNetwork(body, read_look(config, processor), size)
    network.pools = pools
    try:
        _measure(network, args, size)
        _set_classifier(network, args, size, int(config.num_labels) if is_headed(config) else 0, new=new_head)
    except UserError:
        raise
    except Exception as error:  # the code of a model can raise anything
        raise cannot_run(name, args.in_chans, size, error) from error
    return network, size


@torch.no_grad()
def _measure(network: VisionNetwork, args: BackboneArgs, size: ImageSize) -> None:
    """Find how many tokens come before the patches. Raises UserError for a model whose output changes from run to run.

    The first and the last patch of the image must be the first and the last token after them.
    """
    images = probe_images(network, args.in_chans, size)
    with evaluating(network):
        output, again = (network.body(pixel_values=images, return_dict=True, **network.extra) for _ in range(2))
        first, second = (one[0] for one in (output.to_tuple(), again.to_tuple()))
        if not torch.equal(first, second):
            raise UserError(
                f"model {args.name!r} returns another output for the same images at each call (does it mask patches at "
                "random?), so it cannot teach; give the model that is made from it for use"
            )
        network.pools = network.pools and output.get("pooler_output") is not None
        hidden = network.body(pixel_values=images, output_hidden_states=True, return_dict=True, **network.extra)
        states = hidden.get("hidden_states")
        if not states or states[0].ndim != 3 or hidden.get("reshaped_hidden_states") is not None:
            return
        if network.patch is None:
            raise UserError(
                f"model {args.name!r} states no size of square patches, so its patches cannot be told from other tokens"
            )
        cells = (images.shape[2] // network.patch) * (images.shape[3] // network.patch)
        network.prefix_tokens = states[0].shape[1] - cells
        for corner, expected in ((0, network.prefix_tokens), (-1, states[0].shape[1] - 1)):
            changed = images.clone()
            changed[:, :, corner, corner] += 1
            moved = network.body(pixel_values=changed, output_hidden_states=True, return_dict=True, **network.extra)
            if int((moved.hidden_states[0] - states[0]).abs().sum(dim=(0, 2)).argmax()) != expected:
                raise UserError(f"the patches of model {args.name!r} are not the last of its tokens, row by row")


def _set_classifier(
    network: VisionNetwork, args: BackboneArgs, size: ImageSize, stored: int, *, new: bool = False
) -> None:
    """Keep the classifier of the weights, remove it, or put a new one in its place."""
    if stored:
        calls, _ = record_probe(network, args.name, args.in_chans, size, output_shape)
        network.classifier_names = _heads(network, calls, args.name, stored)
        network.places = len(network.classifier_names)
        if args.num_classes == stored and not new:
            return
        for head in network.classifier_names:
            old = network.get_submodule(head)
            if not isinstance(old, nn.Linear):
                raise UserError(f"the classifier of {args.name!r} is not a linear layer, so it cannot be replaced")
            put = nn.Linear(old.in_features, args.num_classes) if args.num_classes else nn.Identity()
            network.set_submodule(head, put)
        if not args.num_classes:
            network.classifier_names = ()
    elif args.num_classes:
        with evaluating(network):
            width = network(probe_images(network, args.in_chans, size)).shape[1]
        network.classifier = nn.Linear(width, args.num_classes)
        network.classifier_names = ("classifier",)
    if args.num_classes:
        network.pretrained_cfg = {**network.pretrained_cfg, "label_names": None}


def _heads(network: VisionNetwork, calls: list[Call[Shape | None]], name: str, classes: int) -> tuple[str, ...]:
    """Return the names of all classifiers: outside of the headless model, or the last layer that can be one."""
    body: Any = network.body
    inside = set(body.base_model.modules())
    found = [call.name for call in calls if is_classifier(call.module, classes) and call.module not in inside]
    return tuple(found) or (find_classifier(calls, name, classes).name,)
