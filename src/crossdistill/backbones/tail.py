"""Run a model from the end of one of its stages to embedding and logits.

The tail is a copy of the model that shares all parameters, and whose front is replaced by stubs.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossdistill.backbones._probe import evaluating
from crossdistill.backbones.base import Backbone
from crossdistill.backbones.cut import Entry, Stub, Tokens, cut_after
from crossdistill.errors import UserError
from crossdistill.image_size import sides_of
from crossdistill.types import BackboneOutput


class Tail:
    """The part of a backbone after stage `stage` (1 to 3), with the same parameters.

    Call it with the stage's map (B, C, H, W), and optionally with prefix tokens (B, P, C) where the model has them; it
    returns embedding and logits. Gradients flow through. Batch norms follow the backbone's mode, but do not update its
    running means and variances. It is not an `nn.Module`, so that shared parameters are not registered twice: a
    distiller moves the tails that its method lists in `borrowed`.

    A model that cannot be cut this way may have a method `run_tail(stage, features)` that returns (logits, embedding);
    it is used instead, and updates them. Raises UserError where neither works.
    """

    def __init__(self, backbone: Backbone, stage: int) -> None:
        backbone.require_stages()
        if stage not in (1, 2, 3):
            raise UserError(f"a tail begins after stage 1, 2 or 3, not {stage}")
        narrow = {one.dtype for one in backbone.parameters()} & {torch.float16, torch.bfloat16}
        if narrow:
            raise UserError(
                f"the weights of {backbone.spec.name!r} are {str(narrow.pop()).removeprefix('torch.')}; gradients flow "
                "through its last stages here, which need float32: call .float() on it"
            )
        self.backbone = backbone
        self.stage = stage
        self.own = getattr(backbone.model, "run_tail", None)
        self.prefix_tokens = 0
        self._released = False
        if self.own is not None:
            return
        shared = {id(t): t for t in (*backbone.parameters(), *backbone.buffers())}
        self.network: Backbone = copy.deepcopy(backbone, shared)
        cut = cut_after(backbone, self.network, stage)
        self._stubs = cut.stubs
        self._entry = next(stub for stub in self._stubs if isinstance(stub, Entry))
        if isinstance(self._entry.layout, Tokens):
            self.prefix_tokens = self._entry.layout.count
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0
        self._pairs = [
            (original, self.network.get_submodule(name))
            for name, original in backbone.named_modules()
            if not isinstance(_find(self.network, name), Stub | None)
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
        if isinstance(self._entry.layout, Tokens):
            self._entry.layout.prefix = prefix
        self._entry.features = features
        for stub in self._stubs:
            stub.like, stub.batch = features.detach(), len(features)
        sides = sides_of(self.backbone.img_size)
        images = features.detach().new_zeros(()).expand(len(features), self.backbone.spec.in_chans, *sides)
        try:
            output: BackboneOutput = self.network(images)
            return output
        finally:
            self._entry.features = None
            if isinstance(self._entry.layout, Tokens):
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
