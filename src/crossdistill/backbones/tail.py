"""Run a model from the end of one of its stages to embedding and logits.

No model is taken apart by name. One forward pass is recorded, and the module whose output is the stage map is found by
comparing values, in whatever layout the model uses. A copy of the model that shares all parameters then has that
module, and every module that finished before it, replaced by a stub: the stubs return zeros of the right shape, and
the stub of the found module returns the map that the tail was called with.
"""

import copy
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


class _Stub(nn.Module):
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
        share, shape = leaf
        return self.like.new_zeros(round(share * self.batch), *shape)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the zeros, in the structure of the module's output."""
        return tree_unflatten([self.empty(leaf) for leaf in self.leaves], self.tree)


class _Entry(_Stub):
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


class _Tokens:
    """Turns a map (B, C, H, W) into rows of patches, after a model's prefix tokens.

    The prefix tokens cannot be computed from a map; where a model has them they are `prefix` (B, P, C), by default the
    mean of the patches.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.prefix: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        patches = features.flatten(2).transpose(1, 2)
        if not self.count:
            return patches
        prefix = patches.mean(dim=1, keepdim=True).expand(-1, self.count, -1) if self.prefix is None else self.prefix
        return torch.cat([prefix, patches], dim=1)


def _plain(features: Tensor) -> Tensor:
    return features


def _channels_last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1)


class Tail:
    """A backbone from the end of stage `stage` (1 to 3) on, sharing its parameters.

    Call it with the stage's map (B, C, H, W), and optionally with prefix tokens (B, P, C) where the model has them; it
    returns embedding and logits. Gradients flow through. Batch norms follow the backbone's mode, but do not update the
    running statistics. It is not an `nn.Module`, so that nothing it shares is registered twice: a distiller moves the
    tails that its method lists in `borrowed`.

    A model that cannot be cut this way may have a method `run_tail(stage, features)` that returns (logits, embedding);
    it is used instead. Raises UserError where neither works.
    """

    def __init__(self, backbone: Backbone, stage: int) -> None:
        backbone.require_stages()
        if stage not in (1, 2, 3):
            raise UserError(f"a tail begins after stage 1, 2 or 3, not {stage}")
        self.backbone = backbone
        self.stage = stage
        self.own = getattr(backbone.model, "run_tail", None)
        self.prefix_tokens = 0
        self._released = False
        if self.own is not None:
            return
        shared = {id(t): t for t in (*backbone.parameters(), *backbone.buffers())}
        self.network: Backbone = copy.deepcopy(backbone, shared)
        cut = _cut(backbone, self.network, stage)
        self._stubs = cut.stubs
        self._entry = next(stub for stub in self._stubs if isinstance(stub, _Entry))
        if isinstance(self._entry.layout, _Tokens):
            self.prefix_tokens = self._entry.layout.count
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0
        self._pairs = [
            (original, self.network.get_submodule(name))
            for name, original in backbone.named_modules()
            if not isinstance(_find(self.network, name), _Stub | None)
        ]
        with evaluating(backbone):
            again = self(cut.features, cut.prefix)
        if not _close(again, cut.output):
            raise UserError(
                f"the tail of {backbone.spec.name!r} needs more than the map of stage {stage} (several branches?); "
                "add a method run_tail(stage, features) -> (logits, embedding) to the model"
            )

    def __call__(self, features: Tensor, prefix: Tensor | None = None) -> BackboneOutput:
        """Run the tail."""
        if self.own is not None:
            logits, embedding = self.own(self.stage, features)
            return BackboneOutput(logits, embedding)
        for original, copied in self._pairs:
            copied.training = original.training
        if isinstance(self._entry.layout, _Tokens):
            self._entry.layout.prefix = prefix
        self._entry.features = features
        for stub in self._stubs:
            stub.like, stub.batch = features.detach(), len(features)
        spec, size = self.backbone.spec, self.backbone.img_size
        images = features.detach().new_zeros(()).expand(len(features), spec.in_chans, size, size)
        try:
            output: BackboneOutput = self.network(images)
            return output
        finally:
            self._entry.features = None
            if isinstance(self._entry.layout, _Tokens):
                self._entry.layout.prefix = None
            for stub in self._stubs:
                stub.like = torch.empty(0)

    def tensors(self) -> list[Tensor]:
        """List the parameters and buffers that the tail runs."""
        owner = self.backbone if self.own is not None else self.network
        return [*owner.parameters(), *owner.buffers()]

    def release_front(self) -> None:
        """Free the weights of the backbone that the tail does not run; the backbone itself cannot run afterwards."""
        self._released = True
        kept = {id(tensor) for tensor in self.tensors()}
        for tensor in (*self.backbone.parameters(), *self.backbone.buffers()):
            if id(tensor) not in kept:
                tensor.data = tensor.new_empty(0)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the tail as `nn.Module._apply` does."""
        if self.own is not None:
            self.backbone._apply(fn)  # type: ignore[no-untyped-call]
            return
        self.network._apply(fn)  # type: ignore[no-untyped-call]
        if not self._released:
            # A move or cast replaces buffers, while parameters keep their identity.
            for original, copied in self._pairs:
                for name, buffer in original.named_buffers(recurse=False):
                    setattr(copied, name, buffer)


@dataclass(frozen=True)
class _Cut:
    """The stubs of a tail, and what the whole model returned for the probe."""

    stubs: list[_Stub]
    features: Tensor
    prefix: Tensor | None
    output: BackboneOutput


def _close(ours: BackboneOutput, expected: BackboneOutput) -> bool:
    pairs = [(ours.embedding, expected.embedding)]
    if ours.logits is not None and expected.logits is not None:
        pairs.append((ours.logits, expected.logits))
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs)


def _find(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


@torch.no_grad()
def _cut(backbone: Backbone, network: Backbone, stage: int) -> _Cut:
    """Replace the front of `network`, a copy of the backbone, by stubs."""
    images = probe_images(backbone.model, backbone.spec.in_chans, backbone.img_size)
    with evaluating(backbone):
        target = backbone(images, stages=True).require_stages()[stage - 1]
    calls, output = record(backbone.model, lambda: backbone(images), lambda inputs, output: output)
    position, leaf, layout = _find_entry(calls, target, backbone.spec.name, stage)
    entry = calls[position].name
    outputs = {call.name: call.value for call in calls[: position + 1]}
    done = set(outputs) - {call.name for call in calls[position + 1 :]}
    stubs: list[_Stub] = []
    for name in done:
        if any(_inside(name, other) for other in done if other != name):
            continue
        module = backbone.model.get_submodule(name)
        stub = _Stub(module, outputs[name], len(images))
        if name == entry:
            stub = _Entry(module, outputs[name], len(images), leaf, layout)
        network.model.set_submodule(name, stub)
        stubs.append(stub)
    prefix = None
    if isinstance(layout, _Tokens) and layout.count:
        prefix = tree_flatten(outputs[entry])[0][leaf][:, : layout.count]
    return _Cut(stubs, target, prefix, output)


def _find_entry(
    calls: list[Call[Any]], target: Tensor, model: str, stage: int
) -> tuple[int, int, Callable[[Tensor], Tensor]]:
    """Find the call that returned the stage map, the leaf of its output, and the layout."""
    found = [(i, *place) for i, call in enumerate(calls) if (place := _place_of(target, call.value)) is not None]
    if not found:
        raise UserError(
            f"stage {stage} of {model!r} is not the output of one of its modules, so its tail cannot be found; add "
            "a method run_tail(stage, features) -> (logits, embedding) to the model"
        )
    # The first module that returns the map, or the outermost one around it that still does. A later one with the same
    # values is only a fresh norm or an identity.
    first = calls[found[0][0]].name
    return next(hit for hit in reversed(found) if calls[hit[0]].name == first or _inside(first, calls[hit[0]].name))


def _inside(name: str, other: str) -> bool:
    return name.startswith(other + ".")


def _place_of(target: Tensor, output: Any) -> tuple[int, Callable[[Tensor], Tensor]] | None:
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
                return place, _Tokens(count)
    return None
