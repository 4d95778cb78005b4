"""Any image model of Hugging Face transformers, read through its hidden states."""

from typing import Any

from torch import Tensor

from crossdistill.backbones._probe import evaluating, probe_images
from crossdistill.backbones.base import Backbone, classifies, read_spec
from crossdistill.backbones.stages import choose_stages
from crossdistill.backbones.transformers_network import VisionNetwork
from crossdistill.errors import UserError, kind_and_line
from crossdistill.image_size import ImageSize
from crossdistill.types import BackboneOutput


class TransformersBackbone(Backbone):
    """A transformers model as a `Backbone`.

    The embedding is the classifier's input (of several classifiers the mean); without a classifier, the model's pooled
    output, or the mean of its patch tokens where it has no pooler (`note` says which). Stages are hidden states as
    transformers returns them: of plain transformers those after the blocks in the proportion 2-2-6-2, without the
    tokens before the patches; of others the last one of each of the four largest strides (Swin's come after the merging
    of patches).
    """

    model: VisionNetwork

    def __init__(self, model: VisionNetwork, name: str, img_size: ImageSize, in_chans: int) -> None:
        super().__init__()
        self.model = model
        self.img_size = img_size
        self._seen: list[Tensor] = []
        self._recording = False
        self._taps: tuple[int, ...] = ()
        self._channels_last = False
        """Whether the hidden states that are maps have their channels last (Hiera)."""
        for head in model.classifier_names:
            model.get_submodule(head).register_forward_pre_hook(self._keep_input)
        with evaluating(self):
            images = probe_images(model, in_chans, img_size)
            self._choose(images)
            probed = self(images, stages=self.stage_problem is None)
            self._one_head = classifies(self.model.get_classifier(), probed.embedding, probed.logits)
        self.spec = read_spec(model, probed, name, img_size, in_chans)
        pooled = "its pooled output" if model.pools else "the mean of its patches, since it has no pooler"
        if model.places:
            pooled = "the input of its classifier" if model.places == 1 else "the mean of its classifiers' inputs"
        self.note = f"the embedding is {pooled}"

    @property
    def classifies_embedding(self) -> bool:
        """Whether the logits are the classifier's output for the embedding."""
        return bool(self.model.classifier_names) and self._one_head

    # A bound method, not a closure: a deep copy gets its own.
    def _keep_input(self, module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self._recording:
            return None
        self._seen.append(inputs[0])
        return None if self.before_classifier is None else (self.before_classifier(inputs[0]), *inputs[1:])

    def _choose(self, images: Tensor) -> None:
        """Choose the hidden states that are the stages, or say why there are none."""
        try:
            output = self.model.run(images, hidden=True)[1]
            self._channels_last = _has_channels_last(output)
            maps = self._maps(output, images)
        except UserError as error:
            self.stage_problem = str(error)
            return
        except Exception as error:  # the code of a model can raise anything
            self.stage_problem = f"its hidden states failed with {kind_and_line(error)}"
            return
        self._taps = choose_stages([round(images.shape[2] / one.shape[2]) for one in maps])

    def _maps(self, output: Any, images: Tensor) -> list[Tensor]:
        """Return all hidden states as maps (B, C, H, W); of plain transformers those after the first block."""
        states = output.get("reshaped_hidden_states") or output.get("hidden_states")
        if not states:
            raise UserError("it returns no hidden states")
        if all(state.ndim == 4 for state in states):
            return [state.permute(0, 3, 1, 2) if self._channels_last else state for state in states]
        patch = self.model.patch
        if patch is None or not all(state.ndim == 3 for state in states):
            raise UserError("its hidden states are neither maps nor tokens of one patch size")
        grid = (images.shape[2] // patch, images.shape[3] // patch)
        # The first is the input of the first block.
        return [state[:, self.model.prefix_tokens :].transpose(1, 2).unflatten(2, grid) for state in states[1:]]

    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Run images (B, C, H, W), normalised as `spec` says."""
        if stages:
            self.require_stages()
        self._recording = True
        try:
            result, output = self.model.run(images, hidden=stages)
            headed = bool(self.model.classifier_names)
            embedding = sum(self._seen[1:], self._seen[0]) / len(self._seen) if headed else result
        finally:
            # No tensor of a forward pass is kept after it.
            self._recording = False
            self._seen.clear()
        maps: tuple[Tensor, ...] | None = None
        if stages:
            every = self._maps(output, images)
            maps = tuple(every[tap] for tap in self._taps)
        return BackboneOutput(result if headed else None, embedding, maps)


def _has_channels_last(output: Any) -> bool:
    """Return whether maps are (B, H, W, C) and not (B, C, H, W), by the width of the same states as tokens."""
    maps, tokens = output.get("reshaped_hidden_states") or (), output.get("hidden_states") or ()
    pairs = [(m.shape[1:], t.shape[2]) for m, t in zip(maps, tokens, strict=False) if m.ndim == 4 and t.ndim == 3]
    return any(shape[2] == width != shape[0] for shape, width in pairs)
