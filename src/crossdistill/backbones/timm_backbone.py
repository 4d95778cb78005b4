"""Any timm model, read through timm's own feature interface."""

import logging
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones._probe import cannot_run, evaluating, probe_images
from crossdistill.backbones.base import Backbone, classifies, read_spec
from crossdistill.backbones.stages import choose_stages
from crossdistill.errors import UserError, kind_and_line
from crossdistill.image_size import ImageSize
from crossdistill.types import BackboneOutput

_log = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """A timm model as a `Backbone`.

    Stages come from `forward_intermediates` (before any final norm), the embedding from
    `forward_head(pre_logits=True)`, the logits from the classifier applied to it; a model built with `num_classes=0`
    returns none. Stage 4 of a network with a convolutional head (EfficientNet, MobileNetV2) is the map after it, the
    one that is pooled; convolutions after the pooling (MobileNetV3) are not part of a stage. A few models (with several
    heads) compute their logits in another way; a probe finds them, and their head is called a second time for the
    logits.
    """

    model: Any  # timm's conventions (forward_head, feature_info, ...) have no common type

    def __init__(self, model: nn.Module, name: str, img_size: ImageSize, in_chans: int) -> None:
        super().__init__()
        self.model = model
        self.img_size = img_size
        for method in ("forward_features", "forward_head", "get_classifier"):
            if not callable(getattr(model, method, None)):
                raise UserError(
                    f"model {name!r} has no {method}(), so its embedding cannot be read as timm does; give it as "
                    "'package.module:factory' instead"
                )
        taps: tuple[int, ...] = ()
        if callable(getattr(model, "forward_intermediates", None)):
            taps = choose_stages([int(info["reduction"]) for info in self.model.feature_info])
        else:
            self.stage_problem = "it has no forward_intermediates()"
        self._taps = sorted(set(taps))
        self._places = tuple(self._taps.index(tap) for tap in taps)
        self._headless = getattr(model, "num_classes", None) == 0
        self._one_head_call = True
        with evaluating(self):
            output = self._probe(probe_images(model, in_chans, img_size), name)
        self.spec = read_spec(model, output, name, img_size, in_chans)

    def _probe(self, images: Tensor, name: str) -> BackboneOutput:
        try:
            final = self.model.forward_features(images)
            embedding = self.model.forward_head(final, pre_logits=True)
            expected = self.model.forward_head(final)
        except Exception as error:  # the code of a model can raise anything
            raise cannot_run(name, images.shape[1], self.img_size, error) from error
        if embedding.ndim != 2 or expected.ndim != 2:
            raise UserError(
                f"model {name!r} returns an embedding of shape {tuple(embedding.shape)} and logits of shape "
                f"{tuple(expected.shape)}; both must be (batch, width)"
            )
        if not self._headless:
            self._one_head_call = classifies(self.model.get_classifier(), embedding, expected)
        if not self._one_head_call:
            _log.warning("%s: logits are not classifier(embedding); its head runs twice per forward", name)
        if self._taps:
            try:
                return self(images, stages=True)
            except Exception as error:
                self.stage_problem = f"forward_intermediates() failed with {kind_and_line(error)}"
        return BackboneOutput(None if self._headless else expected, embedding)

    @property
    @override
    def classifies_embedding(self) -> bool:
        """Whether the logits are the classifier's output for the embedding."""
        return not self._headless and self._one_head_call

    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Run images (B, C, H, W), normalised as `spec` says."""
        maps: tuple[Tensor, ...] | None = None
        if stages:
            self.require_stages()
            final, tapped = self.model.forward_intermediates(images, indices=self._taps, output_fmt="NCHW")
            maps = tuple(tapped[place] for place in self._places)
            if _is_head_map(final, maps[-1]):
                maps = (*maps[:-1], final)
        else:
            final = self.model.forward_features(images)
        embedding = self.model.forward_head(final, pre_logits=True)
        if self._headless:
            return BackboneOutput(None, embedding, maps)
        if not self._one_head_call:
            return BackboneOutput(self.model.forward_head(final), embedding, maps)
        seen = embedding if self.before_classifier is None else self.before_classifier(embedding)
        return BackboneOutput(self.model.get_classifier()(seen), embedding, maps)


def _is_head_map(final: Any, last: Tensor) -> bool:
    """Return whether the final features are the last map (B, C, H, W) after a convolutional head: other channels."""
    if not isinstance(final, Tensor) or final.ndim != 4:
        return False
    return final.shape[2:] == last.shape[2:] and final.shape[1] != last.shape[1]
