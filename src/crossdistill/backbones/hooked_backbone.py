"""Any other `nn.Module`: stages and embedding are read by hooks on its named modules."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from crossdistill.backbones._probe import Call, evaluating, probe_images, record_probe
from crossdistill.backbones.base import Backbone, read_spec
from crossdistill.backbones.stages import STAGES, choose_stages, proportional_cuts
from crossdistill.errors import UserError, unknown
from crossdistill.types import BackboneOutput

Shape = tuple[int, ...]


class HookedBackbone(Backbone):
    """A module that is no timm model as a `Backbone`.

    The classifier is the last Linear or 1x1 Conv2d with `num_classes` outputs; the embedding is its input (pooled, for
    a convolution). With `num_classes` 0 the module's own output is the embedding. Stages are found for the usual
    structures: the last module of each resolution (NCHW or NHWC), or equal blocks of tokens or maps, cut as
    `proportional_cuts` says; or they are the four modules named in `stages`.
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
        images = probe_images(model, in_chans, img_size)
        calls, output = record_probe(model, name, in_chans, img_size, _shape)
        _check_output(output, name, num_classes)
        self._classifier: str | None = None
        if num_classes:
            classifier = _find_classifier(calls, name, num_classes)
            calls = calls[: calls.index(classifier)]
            self._classifier = classifier.name
        self._stage_names: tuple[str, ...] = ()
        self._layouts: list[str | int] = []
        before = [call for call in calls if call.value is not None]
        try:
            names = self._named(stages, before) if stages is not None else _find_stages(before)
            last_calls = {call.name: call for call in before}
            self._layouts = _layouts([last_calls[name] for name in names], model)
            self._stage_names = names
        except UserError as error:
            if stages is not None:
                raise
            self.stage_problem = str(error)
        if self._classifier is not None:
            model.get_submodule(self._classifier).register_forward_pre_hook(self._keep_input)
        for stage in set(self._stage_names):
            model.get_submodule(stage).register_forward_hook(partial(self._keep_output, stage))
        with evaluating(self):
            probed = self(images, stages=self.stage_problem is None)
        self.spec = read_spec(model, probed, name, img_size, in_chans)

    def _named(self, stages: Sequence[str], calls: list[Call[Shape | None]]) -> tuple[str, ...]:
        if len(stages) != STAGES:
            raise UserError(f"stages names {len(stages)} modules; it must name {STAGES}, shallow to deep")
        known = [name for name, _ in self.model.named_modules() if name]
        called = {call.name for call in calls}
        for stage in stages:
            if stage not in known:
                raise unknown("stage module", stage, known)
            if stage not in called:
                raise UserError(f"stage module {stage!r} returns no tensor before the classifier; name one that does")
        return tuple(stages)

    # Bound methods and partials, not closures: a deep copy (the averaged student) gets its own.
    def _keep_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if "embedding" in self._recording:
            self._seen["embedding"] = inputs[0]

    def _keep_output(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if name in self._recording:
            self._seen[name] = output

    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Run images (B, C, H, W), normalised as `spec` says."""
        if stages:
            self.require_stages()
        self._recording = ("embedding", *(self._stage_names if stages else ()))
        try:
            output = self.model(images)
            # In training some networks return the logits of auxiliary heads as well; the main head comes first.
            output = output[0] if isinstance(output, tuple) else output
            logits = None if self._classifier is None else output
            embedding = output if self._classifier is None else self._seen["embedding"]
            if embedding.ndim == 4:
                embedding = embedding.mean(dim=(2, 3))
            maps = None
            if stages:
                named = zip(self._stage_names, self._layouts, strict=True)
                maps = tuple(_to_map(self._seen[name], layout) for name, layout in named)
        finally:
            # No tensor of a forward pass is kept after it.
            self._recording = ()
            self._seen.clear()
        return BackboneOutput(logits, embedding, maps)


def _shape(inputs: tuple[Any, ...], output: Any) -> Shape | None:
    return tuple(output.shape) if isinstance(output, Tensor) else None


def _side(shape: Shape) -> int:
    """Return the cells along one side of a square map, 0 where the shape is no such map."""
    if len(shape) != 4:
        return 0
    if shape[2] == shape[3]:
        return shape[2]
    return shape[1] if shape[1] == shape[2] else 0


def _check_output(output: Any, name: str, num_classes: int) -> None:
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if num_classes and got != (2, num_classes):
        raise UserError(f"model {name!r} returns {got} for two images; expected logits (2, {num_classes})")
    if not num_classes and not (isinstance(output, Tensor) and output.ndim in (2, 4) and len(output) == 2):
        raise UserError(
            f"model {name!r} returns {got} for two images; without a classifier it must return an embedding (2, D) or "
            "a map (2, C, H, W)"
        )


def _find_classifier(calls: list[Call[Shape | None]], name: str, num_classes: int) -> Call[Shape | None]:
    for call in reversed(calls):
        if is_classifier(call.module, num_classes):
            return call
    raise UserError(
        f"model {name!r} has no Linear or 1x1 Conv2d with {num_classes} outputs, so its embedding cannot be read; end "
        "it with one"
    )


def is_classifier(module: nn.Module, num_classes: int) -> bool:
    """Return whether a layer can be a classifier of so many classes."""
    if isinstance(module, nn.Linear):
        return module.out_features == num_classes
    return isinstance(module, nn.Conv2d) and module.out_channels == num_classes and module.kernel_size == (1, 1)


def _find_stages(calls: list[Call[Shape | None]]) -> tuple[str, ...]:
    pools = [i for i, call in enumerate(calls) if isinstance(call.module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)]
    if pools:
        calls = calls[: pools[-1]]
    # On the main path no later map is larger: this leaves out side branches such as squeeze-excitation.
    path: list[tuple[str, int]] = []
    for call in reversed(calls):
        side = _side(call.value or ())
        if side and (not path or side >= path[-1][1]):
            path.append((call.name, side))
    path.reverse()
    if len({side for _, side in path}) >= STAGES:
        return tuple(path[i][0] for i in choose_stages([-side for _, side in path]))
    blocks = _equal_blocks(calls)
    if len(blocks) >= STAGES:
        return tuple(blocks[i] for i in proportional_cuts(len(blocks)))
    raise UserError("it has neither four resolutions nor four equal blocks of tokens or maps")


def _equal_blocks(calls: list[Call[Shape | None]]) -> list[str]:
    groups: dict[tuple[str, Shape], list[str]] = {}
    for call in calls:
        shape = call.value or ()
        if _side(shape) or len(shape) == 3:
            parent = call.name.rpartition(".")[0]
            groups.setdefault((parent, shape), []).append(call.name)
    return max(groups.values(), key=lambda names: (len(names), -names[0].count(".")), default=[])


def _layouts(calls: list[Call[Shape | None]], model: nn.Module) -> list[str | int]:
    """Return for each stage "NCHW", "NHWC", or the number of prefix tokens before its patches."""
    shapes = [call.value or () for call in calls]
    maps = [shape for shape in shapes if len(shape) == 4]
    clear = ["NCHW" if s[2] == s[3] else "NHWC" for s in maps if (s[1] == s[2]) != (s[2] == s[3])]
    # A map whose channels equal its side could be either; the other maps decide.
    usual = max(set(clear), key=clear.count) if clear else "NCHW"
    layouts: list[str | int] = []
    for call, shape in zip(calls, shapes, strict=True):
        if len(shape) == 4:
            plain, last = shape[2] == shape[3], shape[1] == shape[2]
            layouts.append(usual if plain == last else "NCHW" if plain else "NHWC")
        elif len(shape) == 3:
            layouts.append(_prefix_tokens(shape[1], model))
        else:
            raise UserError(f"stage {call.name!r} returns {shape}; expected a map (B, C, H, W) or tokens (B, L, D)")
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
    # Class and register tokens come before the patches.
    patches = output[:, layout:]
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).unflatten(2, (side, side))
