"""Replace the front of a model, up to the end of one of its stages, by stubs.

No model is taken apart by name. One forward pass is recorded, and the module whose output is the stage map is found by
comparing values, in whatever layout the model uses. In a copy of the model, that module and every module that finished
before it are replaced: stubs return zeros of the right shape, and the stub of the found module returns a given map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from crossdistill.backbones._probe import Call, evaluating, probe_images, record
from crossdistill.backbones.base import Backbone
from crossdistill.errors import UserError
from crossdistill.types import BackboneOutput


class Stub(nn.Module):
    """Replaces a module of the front, and returns zeros of its output's shape for any batch."""

    def __init__(self, module: nn.Module, output: Any, batch: int) -> None:
        super().__init__()
        # Other modules may read its attributes (a grid size); inside a tuple it is not registered.
        self._replaced = (module,)
        leaves, self.tree = tree_flatten(output)
        # Shapes for each image; what is not a tensor (a height, a width) stays as it was.
        self.leaves = [
            (leaf.shape[0] / batch, leaf.shape[1:]) if isinstance(leaf, Tensor) and leaf.ndim else leaf
            for leaf in leaves
        ]
        self.like = torch.empty(0)
        self.batch = 0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_replaced"][0], name)

    def empty(self, leaf: Any) -> Any:
        """Return zeros of the leaf's shape for the current batch."""
        if not isinstance(leaf, tuple):
            return leaf
        rows_per_image, shape = leaf
        return self.like.new_zeros(round(rows_per_image * self.batch), *shape)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the zeros, in the structure of the module's output."""
        return tree_unflatten([self.empty(leaf) for leaf in self.leaves], self.tree)


class Entry(Stub):
    """Replaces the module that returned the stage map, and returns the map that the tail is called with."""

    def __init__(
        self, module: nn.Module, output: Any, batch: int, place: int, layout: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(module, output, batch)
        self.place = place
        self.layout = layout
        self.features: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the features, in the model's own layout."""
        assert self.features is not None
        leaves = [self.empty(leaf) for leaf in self.leaves]
        leaves[self.place] = self.layout(self.features)
        return tree_unflatten(leaves, self.tree)


class Tokens:
    """Turns a map (B, C, H, W) into rows of patches, after a model's prefix tokens.

    The prefix tokens cannot be computed from a map; where a model has them they are `prefix` (B, P, C), by default the
    mean of the patches.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.prefix: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Return tokens (B, P + H W, C)."""
        patches = features.flatten(2).transpose(1, 2)
        if not self.count:
            return patches
        prefix = patches.mean(dim=1, keepdim=True).expand(-1, self.count, -1) if self.prefix is None else self.prefix
        return torch.cat([prefix, patches], dim=1)


def _plain(features: Tensor) -> Tensor:
    return features


def _channels_last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Cut:
    """The stubs of a tail, and what the whole model returned for the probe."""

    stubs: list[Stub]
    features: Tensor
    prefix: Tensor | None
    output: BackboneOutput


@torch.no_grad()
def cut_after(backbone: Backbone, network: Backbone, stage: int) -> Cut:
    """Replace the front of `network`, a copy of the backbone, by stubs."""
    images = probe_images(backbone.model, backbone.spec.in_chans, backbone.img_size)
    with evaluating(backbone):
        target = backbone(images, stages=True).require_stages()[stage - 1]
    calls, output = record(backbone.model, lambda: backbone(images), lambda inputs, output: output)
    position, leaf, layout = _find_entry(calls, target, backbone.spec.name, stage)
    entry = calls[position].name
    outputs = {call.name: call.value for call in calls[: position + 1]}
    done = set(outputs) - {call.name for call in calls[position + 1 :]}
    stubs: list[Stub] = []
    for name in done:
        if any(_inside(name, other) for other in done if other != name):
            continue
        module = backbone.model.get_submodule(name)
        stub = Stub(module, outputs[name], len(images))
        if name == entry:
            stub = Entry(module, outputs[name], len(images), leaf, layout)
        network.model.set_submodule(name, stub)
        stubs.append(stub)
    prefix = None
    if isinstance(layout, Tokens) and layout.count:
        prefix = tree_flatten(outputs[entry])[0][leaf][:, : layout.count]
    return Cut(stubs, target, prefix, output)


def _find_entry(
    calls: list[Call[Any]], target: Tensor, model: str, stage: int
) -> tuple[int, int, Callable[[Tensor], Tensor]]:
    """Find the call that returned the stage map, the leaf of its output, and the layout."""
    found = [(i, *place) for i, call in enumerate(calls) if (place := place_of(target, call.value)) is not None]
    if not found:
        raise UserError(
            f"stage {stage} of {model!r} is not the output of one of its modules, so its tail cannot be found; add "
            "a method run_tail(stage, features) -> (logits, embedding) to the model"
        )
    # The first module that returns the map, or the outermost one around it that returns it as well. A later module
    # with the same values is a newly initialised norm or an identity.
    first = calls[found[0][0]].name
    return next(hit for hit in reversed(found) if calls[hit[0]].name == first or _inside(first, calls[hit[0]].name))


def _inside(name: str, other: str) -> bool:
    return name.startswith(other + ".")


def place_of(target: Tensor, output: Any) -> tuple[int, Callable[[Tensor], Tensor]] | None:
    """Find which leaf of a module's output is the map, and in which layout."""
    leaves, _ = tree_flatten(output)
    channels, height, width = target.shape[1:]
    for place, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.shape == target.shape and torch.equal(leaf, target):
            return place, _plain
        if leaf.ndim == 4 and leaf.shape == (len(target), height, width, channels):
            if torch.equal(leaf, _channels_last(target)):
                return place, _channels_last
        elif leaf.ndim == 3 and leaf.shape[2] == channels and leaf.shape[1] >= height * width:
            count = leaf.shape[1] - height * width
            if torch.equal(leaf[:, count:], target.flatten(2).transpose(1, 2)):
                return place, Tokens(count)
    return None
