"""Any other `nn.Module`: stages and embedding are read by hooks on its named modules."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones._probe import Call, evaluating, probe_images, record_probe
from crossdistill.backbones.base import Backbone, classifies, read_spec
from crossdistill.backbones.stages import STAGES
from crossdistill.backbones.structure import Shape, find_classifier, find_stages, output_shape, read_layouts, token_grid
from crossdistill.errors import UserError, unknown
from crossdistill.image_size import ImageSize, sides_of
from crossdistill.types import BackboneOutput


class HookedBackbone(Backbone):
    """A module that is not a timm model, as a `Backbone`.

    The classifier is the last Linear or 1x1 Conv2d with `num_classes` outputs; the embedding is its input (pooled, for
    a convolution). With `num_classes` 0 the module's own output is the embedding. Stages are found for the usual
    structures: the last module of each resolution (NCHW or NHWC), or equal blocks of tokens or maps, cut as
    `proportional_cuts` says; or they are the four modules named in `stages`.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        img_size: ImageSize,
        in_chans: int,
        num_classes: int,
        stages: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.img_size = img_size
        self._seen: dict[str, Tensor] = {}
        self._recording: tuple[str, ...] = ()
        calls, output = record_probe(model, name, in_chans, img_size, output_shape)
        _check_output(output, name, num_classes)
        self._classifier: str | None = None
        if num_classes:
            classifier = find_classifier(calls, name, num_classes)
            calls = calls[: calls.index(classifier)]
            self._classifier = classifier.name
            classifier.module.register_forward_pre_hook(self._keep_input)
        calls = [call for call in calls if call.value is not None]
        self._stage_names, self._layouts = self._read_stages(stages, calls, sides_of(img_size))
        for stage in set(self._stage_names):
            model.get_submodule(stage).register_forward_hook(partial(self._keep_output, stage))
        with evaluating(self):
            probed = self(probe_images(model, in_chans, img_size), stages=self.stage_problem is None)
            # A convolution classifies a map, whose gradients are not those of the pooled embedding.
            self._one_head = num_classes > 0 and classifies(classifier.module, probed.embedding, probed.logits)
        self.spec = read_spec(model, probed, name, img_size, in_chans)

    @property
    @override
    def classifies_embedding(self) -> bool:
        """Whether the logits are the classifier's output for the embedding."""
        return self._one_head

    def _read_stages(
        self, stages: Sequence[str] | None, calls: list[Call[Shape | None]], sides: tuple[int, int]
    ) -> tuple[tuple[str, ...], list[str | int]]:
        """Find the modules of the stages, and the layout of each. Raises UserError for wrong names in `stages`."""
        try:
            names = find_stages(calls, sides) if stages is None else self._named(stages, calls)
            last_calls = {call.name: call for call in calls}
            return names, read_layouts([last_calls[name] for name in names], self.model, sides)
        except UserError as error:
            if stages is not None:
                raise
            self.stage_problem = str(error)
            return (), []

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
    def _keep_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if "embedding" not in self._recording:
            return None
        self._seen["embedding"] = inputs[0]
        return None if self.before_classifier is None else (self.before_classifier(inputs[0]), *inputs[1:])

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
                sides = (images.shape[2], images.shape[3])
                named = zip(self._stage_names, self._layouts, strict=True)
                maps = tuple(_to_map(self._seen[name], layout, sides) for name, layout in named)
        finally:
            # No tensor of a forward pass is kept after it.
            self._recording = ()
            self._seen.clear()
        return BackboneOutput(logits, embedding, maps)


def _check_output(output: Any, name: str, num_classes: int) -> None:
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if num_classes and got != (2, num_classes):
        raise UserError(f"model {name!r} returns {got} for two images; expected logits (2, {num_classes})")
    if not num_classes and not (isinstance(output, Tensor) and output.ndim in (2, 4) and len(output) == 2):
        raise UserError(
            f"model {name!r} returns {got} for two images; without a classifier it must return an embedding (2, D) or "
            "a map (2, C, H, W)"
        )


def _to_map(output: Tensor, layout: str | int, sides: tuple[int, int]) -> Tensor:
    if layout == "NHWC":
        return output.permute(0, 3, 1, 2)
    if isinstance(layout, str):
        return output
    # Class and register tokens come before the patches.
    patches = output[:, layout:]
    grid = token_grid(patches.shape[1], sides)
    if grid is None:
        raise UserError(f"{patches.shape[1]} tokens are not a grid of an image of {sides[0]} x {sides[1]}")
    return patches.transpose(1, 2).unflatten(2, grid)
