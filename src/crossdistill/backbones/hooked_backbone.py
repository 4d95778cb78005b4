"""Any other `nn.Module`: stages and embedding are read by hooks on its named modules."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backbones.base import Backbone, probe_images, read_spec
from crossdistill.backbones.stages import STAGES, choose_stages, proportional_cuts
from crossdistill.errors import UserError, first_line, unknown
from crossdistill.types import BackboneOutput


@dataclass(frozen=True)
class _Call:
    """One module's output in a probe, in order of completion."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]

    @property
    def side(self) -> int:
        """Cells along one side of the map, 0 where the output is no map."""
        if len(self.shape) != 4:
            return 0
        if self.shape[2] == self.shape[3]:
            return self.shape[2]
        return self.shape[1] if self.shape[1] == self.shape[2] else 0


class HookedBackbone(Backbone):
    """A module that is no timm model behind the `Backbone` face.

    The classifier is the last Linear or 1x1 Conv2d that gives `num_classes`; the embedding is its
    input (pooled, for a convolution). Stages are found for the usual shapes: the last module of
    each resolution (NCHW or NHWC), or equal blocks of tokens or maps, cut as `proportional_cuts`
    says; or they are the four modules named in `stages`.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        img_size: int,
        in_chans: int,
        num_classes: int,
        stages: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.img_size = img_size
        self._seen: dict[str, Tensor] = {}
        self._recording: tuple[str, ...] = ()
        try:
            calls, logits = _watch(model, probe_images(model, in_chans, img_size))
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"model {name!r} cannot look at images of {in_chans} x {img_size} x {img_size}: {first_line(error)}"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != num_classes:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"model {name!r} gives {got} for two images; expected logits (2, {num_classes})")
        classifier = next((c for c in reversed(calls) if _is_classifier(c.module, num_classes)), None)
        if classifier is None:
            raise UserError(
                f"model {name!r} has no Linear or 1x1 Conv2d that gives {num_classes} classes, so its embedding cannot "
                "be read; end it with one"
            )
        before = calls[: calls.index(classifier)]
        self._stage_names: tuple[str, ...] = ()
        self._layouts: list[str | int] = []
        try:
            names = self._named(stages, before) if stages is not None else _find_stages(before)
            last_calls = {call.name: call for call in before}
            self._layouts = _layouts([last_calls[name] for name in names], model)
            self._stage_names = names
        except UserError as error:
            if stages is not None:
                raise
            self.stage_problem = str(error)
        self._embedding_name = classifier.name
        model.get_submodule(classifier.name).register_forward_pre_hook(self._keep_input)
        for stage in set(self._stage_names):
            model.get_submodule(stage).register_forward_hook(partial(self._keep_output, stage))
        with torch.no_grad():
            output = self._probe(probe_images(model, in_chans, img_size))
        self.spec = read_spec(model, output, name, img_size, in_chans)

    def _named(self, stages: Sequence[str], calls: list[_Call]) -> tuple[str, ...]:
        if len(stages) != STAGES:
            raise UserError(f"stages names {len(stages)} modules; it must name {STAGES}, shallow to deep")
        known = [name for name, _ in self.model.named_modules() if name]
        called = {call.name for call in calls}
        for stage in stages:
            if stage not in known:
                raise unknown("stage module", stage, known)
            if stage not in called:
                raise UserError(f"stage module {stage!r} gives no tensor before the classifier; name one that does")
        return tuple(stages)

    # Bound methods and partials, not closures: they follow a deepcopy (the averaged student) to the copy.
    def _keep_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if "embedding" in self._recording:
            self._seen["embedding"] = inputs[0]

    def _keep_output(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if name in self._recording:
            self._seen[name] = output

    def _probe(self, images: Tensor) -> BackboneOutput:
        training = self.model.training
        self.model.eval()
        try:
            return self(images, stages=self.stage_problem is None)
        finally:
            self.model.train(training)

    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Look at images (B, C, H, W), normalised as `spec` says."""
        if stages:
            self.require_stages()
        self._recording = ("embedding", *(self._stage_names if stages else ()))
        try:
            logits = self.model(images)
            # Some networks answer with auxiliary heads too while they train; the main one comes first.
            logits = logits[0] if isinstance(logits, tuple) else logits
            embedding = self._seen["embedding"]
            if embedding.ndim == 4:
                embedding = embedding.mean(dim=(2, 3))
            maps = None
            if stages:
                named = zip(self._stage_names, self._layouts, strict=True)
                maps = tuple(_to_map(self._seen[name], layout) for name, layout in named)
        finally:
            # Nothing of a forward is held beyond it.
            self._recording = ()
            self._seen.clear()
        return BackboneOutput(logits, embedding, maps)


def _watch(model: nn.Module, images: Tensor) -> tuple[list[_Call], Any]:
    calls: list[_Call] = []

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                calls.append(_Call(name, module, tuple(output.shape)))

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    training = model.training
    try:
        with torch.no_grad():
            return calls, model.eval()(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


def _is_classifier(module: nn.Module, num_classes: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features == num_classes
    return isinstance(module, nn.Conv2d) and module.out_channels == num_classes and module.kernel_size == (1, 1)


def _find_stages(calls: list[_Call]) -> tuple[str, ...]:
    pools = [i for i, call in enumerate(calls) if isinstance(call.module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)]
    if pools:
        calls = calls[: pools[-1]]
    # On the main path no later map is larger: this leaves out side branches such as squeeze-excitation.
    path: list[_Call] = []
    for call in reversed(calls):
        if call.side and (not path or call.side >= path[-1].side):
            path.append(call)
    path.reverse()
    if len({call.side for call in path}) >= STAGES:
        chosen = choose_stages([-call.side for call in path])
        return tuple(path[i].name for i in chosen)
    blocks = _equal_blocks(calls)
    if len(blocks) >= STAGES:
        return tuple(blocks[i] for i in proportional_cuts(len(blocks)))
    raise UserError("it has neither four resolutions nor four equal blocks of tokens or maps")


def _equal_blocks(calls: list[_Call]) -> list[str]:
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for call in calls:
        if call.side or len(call.shape) == 3:
            parent = call.name.rpartition(".")[0]
            groups.setdefault((parent, call.shape), []).append(call.name)
    return max(groups.values(), key=lambda names: (len(names), -names[0].count(".")), default=[])


def _layouts(calls: list[_Call], model: nn.Module) -> list[str | int]:
    """Say of each stage whether it is "NCHW", "NHWC", or tokens behind a number of prefix tokens."""
    maps = [call.shape for call in calls if len(call.shape) == 4]
    clear = ["NCHW" if s[2] == s[3] else "NHWC" for s in maps if (s[1] == s[2]) != (s[2] == s[3])]
    # A map whose channels equal its side could be either: it is what the others are.
    usual = max(set(clear), key=clear.count) if clear else "NCHW"
    layouts: list[str | int] = []
    for call in calls:
        shape = call.shape
        if len(shape) == 4:
            plain, last = shape[2] == shape[3], shape[1] == shape[2]
            layouts.append(usual if plain == last else "NCHW" if plain else "NHWC")
        elif len(shape) == 3:
            layouts.append(_prefix_tokens(shape[1], model))
        else:
            raise UserError(f"stage {call.name!r} gives shape {shape}; expected a map (B, C, H, W) or tokens (B, L, D)")
    return layouts


def _prefix_tokens(length: int, model: nn.Module) -> int:
    own = getattr(model, "num_prefix_tokens", None)
    for prefix in (own,) if isinstance(own, int) else (0, 1, 2):
        if length > prefix and math.isqrt(length - prefix) ** 2 == length - prefix:
            return prefix
    raise UserError(f"{length} tokens are no square grid behind 0, 1 or 2 prefix tokens")


def _to_map(output: Tensor, layout: str | int) -> Tensor:
    if layout == "NHWC":
        return output.permute(0, 3, 1, 2)
    if isinstance(layout, str):
        return output
    # Class and register tokens stand before the patches.
    patches = output[:, layout:]
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).unflatten(2, (side, side))
