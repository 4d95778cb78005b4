"""Run a model from one of its stages to embedding and logits.

No model is taken apart by name. One forward is watched: the module whose output is the stage map
is found by comparing values, in whatever layout the model keeps it. A copy of the model that
shares all parameters then has that module, and every module that finished before it, replaced by
a stub: the stubs give empty tensors of the right shape, the found one gives the map it was handed.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from crossdistill.backbones.base import Backbone, probe_images
from crossdistill.errors import UserError
from crossdistill.types import BackboneOutput


class _Stub(nn.Module):
    """Stands where a module of the front stood, and gives its output's shape for any batch."""

    def __init__(self, module: nn.Module, output: Any, batch: int) -> None:
        super().__init__()
        # Others may ask it for a grid size and the like; a tuple does not register it.
        self._stands_for = (module,)
        leaves, self.tree = tree_flatten(output)
        # Shapes per image; what is no tensor (a height, a width) stays as it was.
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
            return getattr(self.__dict__["_stands_for"][0], name)

    def empty(self, leaf: Any) -> Any:
        """Give zeros of the leaf's shape for the batch at hand."""
        if not isinstance(leaf, tuple):
            return leaf
        share, shape = leaf
        return self.like.new_zeros(round(share * self.batch), *shape)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Give the empty output."""
        return tree_unflatten([self.empty(leaf) for leaf in self.leaves], self.tree)


class _Entry(_Stub):
    """Stands where the stage's last module stood, and gives the map that the tail is run on."""

    def __init__(
        self, module: nn.Module, output: Any, batch: int, place: int, layout: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(module, output, batch)
        self.place = place
        self.layout = layout
        self.features: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Give the features, in the model's own layout."""
        assert self.features is not None
        leaves = [self.empty(leaf) for leaf in self.leaves]
        leaves[self.place] = self.layout(self.features)
        return tree_unflatten(leaves, self.tree)


class _Tokens:
    """Puts a map (B, C, H, W) back into the rows of patches, behind a model's prefix tokens.

    The prefix tokens cannot be told from a map; where a model has them they are `prefix` (B, P, C), by
    default the mean of the patches.
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

    Call it with the stage's map (B, C, H, W), and where the model has prefix tokens optionally with
    them (B, P, C); it gives logits and embedding. Gradients flow through; the copy's batch norms
    use but do not move running statistics. It is no `nn.Module`, so that nothing it shares is
    registered twice; `train` and `to_device_of` keep it in step with its backbone.

    A model of one's own that cannot be read this way may have a method `run_tail(stage, features)`
    that gives (logits, embedding); it is used instead. Raises UserError where neither works.
    """

    def __init__(self, backbone: Backbone, stage: int) -> None:
        backbone.require_stages()
        if stage not in (1, 2, 3):
            raise UserError(f"a tail begins after stage 1, 2 or 3, not {stage}")
        self.backbone = backbone
        self.stage = stage
        self.own = getattr(backbone.model, "run_tail", None)
        self.prefix_tokens = 0
        if self.own is not None:
            return
        shared = {id(t): t for t in (*backbone.parameters(), *backbone.buffers())}
        self._tail: Backbone = copy.deepcopy(backbone, shared)
        cut = _cut(backbone, self._tail, stage)
        self._stubs = cut.stubs
        self._entry = next(stub for stub in self._stubs if isinstance(stub, _Entry))
        if isinstance(self._entry.layout, _Tokens):
            self.prefix_tokens = self._entry.layout.count
        for module in self._tail.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0
        self._pairs = [
            (own, self._tail.get_submodule(name))
            for name, own in backbone.named_modules()
            if not isinstance(_find(self._tail, name), _Stub | None)
        ]
        with torch.no_grad(), _evaluating(backbone):
            again = self(cut.features, cut.prefix)
        if not all(
            torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
            for ours, theirs in ((again.embedding, cut.output.embedding), (again.logits, cut.output.logits))
        ):
            raise UserError(
                f"the tail of {backbone.spec.name!r} needs more than the map of stage {stage} (several branches?); "
                "give the model a method run_tail(stage, features) -> (logits, embedding)"
            )

    def __call__(self, features: Tensor, prefix: Tensor | None = None) -> BackboneOutput:
        """Run the tail."""
        if self.own is not None:
            logits, embedding = self.own(self.stage, features)
            return BackboneOutput(logits, embedding)
        for own, shadow in self._pairs:
            shadow.training = own.training
        if isinstance(self._entry.layout, _Tokens):
            self._entry.layout.prefix = prefix
        self._entry.features = features
        for stub in self._stubs:
            stub.like, stub.batch = features.detach(), len(features)
        spec, size = self.backbone.spec, self.backbone.img_size
        images = features.detach().new_zeros(()).expand(len(features), spec.in_chans, size, size)
        try:
            output: BackboneOutput = self._tail(images)
            return output
        finally:
            self._entry.features = None
            for stub in self._stubs:
                stub.like = torch.empty(0)

    def release_front(self) -> None:
        """Free the weights of the backbone that the tail does not run; the backbone itself can then run no more."""
        if self.own is not None:
            return
        kept = {id(tensor) for tensor in (*self._tail.parameters(), *self._tail.buffers())}
        for tensor in (*self.backbone.parameters(), *self.backbone.buffers()):
            if id(tensor) not in kept:
                tensor.data = tensor.new_empty(0)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move what is not shared (buffers) like the backbone; parameters follow by themselves."""
        if self.own is None:
            self._tail._apply(fn)  # type: ignore[no-untyped-call]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class _Cut:
    """The stubs of a tail, and what the model itself gave for the probe."""

    stubs: list[_Stub]
    features: Tensor
    prefix: Tensor | None
    output: BackboneOutput


def _find(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


@torch.no_grad()
def _cut(backbone: Backbone, tail: Backbone, stage: int) -> _Cut:
    images = probe_images(backbone.model, backbone.spec.in_chans, backbone.img_size)
    calls: list[tuple[str, Any]] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            calls.append((name, output))

        return hook

    with _evaluating(backbone):
        stages = backbone(images, stages=True).stages
        assert stages is not None
        named = [(name, module) for name, module in backbone.model.named_modules() if name]
        handles = [module.register_forward_hook(watch(name)) for name, module in named]
        try:
            output = backbone(images)
        finally:
            for handle in handles:
                handle.remove()
    target = stages[stage - 1]
    found = [(i, *place) for i, (_, output) in enumerate(calls) if (place := _place_of(target, output)) is not None]
    if not found:
        raise UserError(
            f"stage {stage} of {backbone.spec.name!r} is not the output of one of its modules, so its tail cannot be "
            "found; give the model a method run_tail(stage, features) -> (logits, embedding)"
        )
    # The first module that gives the map, or the outermost one around it that still does. A later one with the same
    # values is only a fresh norm or an identity.
    first = calls[found[0][0]][0]
    last, leaf, layout = next(
        hit for hit in reversed(found) if calls[hit[0]][0] == first or _inside(first, calls[hit[0]][0])
    )
    name = calls[last][0]
    before = {called for called, _ in calls[: last + 1]}
    after = {called for called, _ in calls[last + 1 :]}
    done = before - after
    outer = [called for called in done if not any(_inside(called, other) for other in done if other != called)]
    outputs = dict(calls[: last + 1])
    stubs: list[_Stub] = []
    for called in outer:
        module = backbone.model.get_submodule(called)
        stub = _Stub(module, outputs[called], len(images))
        if called == name:
            stub = _Entry(module, outputs[called], len(images), leaf, layout)
        tail.model.set_submodule(called, stub)
        stubs.append(stub)
    prefix = None
    if isinstance(layout, _Tokens) and layout.count:
        prefix = tree_flatten(outputs[name])[0][leaf][:, : layout.count]
    return _Cut(stubs, target, prefix, output)


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
