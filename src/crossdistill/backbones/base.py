"""The interface of every network in this package."""

from collections.abc import Callable
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from crossdistill.backbones.args import BackboneArgs
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize, sides_of
from crossdistill.types import BackboneOutput, BackboneSpec


class Backbone(nn.Module):
    """A network that returns logits, pooled embedding and, when asked, four stage maps in one forward pass.

    `model` is the plain network, `spec` holds facts read from it, `img_size` is the size of its input in pixels,
    `args` holds the arguments that build it again. A network without a classifier has
    `spec.num_classes` 0 and returns no logits.
    """

    model: nn.Module
    spec: BackboneSpec
    img_size: ImageSize
    args: BackboneArgs

    def __init__(self) -> None:
        super().__init__()
        self.stage_problem: str | None = None
        """Why the stages cannot be read; None where they can."""
        self.before_classifier: Callable[[Tensor], Tensor] | None = None
        """Applied to the embedding on its way into the classifier; it must not change the values."""
        self.class_names: tuple[str, ...] | None = None
        """The names of the classes in the order of the logits; None where nothing states them."""
        self.weights_part = ""
        """The keys in a checkpoint file under which the weights were found; "" where they are all of it."""
        self.note = ""
        """How the network is read where there is more than one way, and what of a file is not used; for the log."""

    @property
    def classifies_embedding(self) -> bool:
        """Whether the logits are the classifier's output for the embedding."""
        return self.spec.num_classes > 0

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that the architecture excludes from weight decay."""
        ask = getattr(self.model, "no_weight_decay", None)
        return {f"model.{name}" for name in ask()} if callable(ask) else set()

    def classes_in_words(self) -> str:
        """Return how many classes the network has, for an error message."""
        name, classes = self.spec.name, self.spec.num_classes
        return f"{name!r} has {classes} classes" if classes else f"{name!r} has no classifier"

    @property
    def networks(self) -> "tuple[Backbone, ...]":
        """The networks that this one consists of; several only for several teachers."""
        return (self,)

    def shares_classes(self, other: "Backbone") -> bool:
        """Return whether the logits of both are those of the same classes in the same order, as far as is known."""
        return all(
            one.spec.num_classes == other.spec.num_classes > 0
            and (one.class_names is None or other.class_names in (None, one.class_names))
            for one in self.networks
        )

    def require_stages(self) -> None:
        """Raise UserError where the stages cannot be read: why, and what to do."""
        if self.stage_problem is not None:
            raise UserError(
                f"stages of {self.spec.name!r} cannot be read: {self.stage_problem}. Name four of its modules, shallow "
                "to deep: create_backbone(..., stages=['name1', ..., 'name4']) or --model.student_stages / "
                "--model.teacher_stages"
            )

    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Run images (B, C, H, W), normalised as `spec` says."""
        raise NotImplementedError


def expected_normalisation(model: nn.Module, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each channel as the model's own config states them, or ImageNet's."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    mean, std = cfg.get("mean", IMAGENET_DEFAULT_MEAN), cfg.get("std", IMAGENET_DEFAULT_STD)
    if len(mean) != in_chans:
        mean, std = (sum(mean) / len(mean),) * in_chans, (sum(std) / len(std),) * in_chans
    return tuple(float(v) for v in mean), tuple(float(v) for v in std)


def read_spec(model: nn.Module, output: BackboneOutput, name: str, img_size: ImageSize, in_chans: int) -> BackboneSpec:
    """Read the facts about a backbone from one output. Raises UserError for an embedding without a dimension."""
    maps = output.stages
    if output.embedding.shape[1] == 0:
        raise UserError(f"model {name!r} returns an embedding of width 0; it must have at least one dimension")
    mean, std = expected_normalisation(model, in_chans)
    height, _ = sides_of(img_size)
    return BackboneSpec(
        name=name,
        num_classes=0 if output.logits is None else output.logits.shape[1],
        embedding_dim=output.embedding.shape[1],
        stage_channels=None if maps is None else tuple(m.shape[1] for m in maps),
        stage_strides=None if maps is None else tuple(round(height / m.shape[2]) for m in maps),
        stage_grids=None if maps is None else tuple((m.shape[2], m.shape[3]) for m in maps),
        in_chans=in_chans,
        mean=mean,
        std=std,
    )


def classifies(classifier: Any, embedding: Tensor, logits: Tensor | None) -> bool:
    """Return whether the logits are a classifier's output for the embedding."""
    if not isinstance(classifier, nn.Module) or logits is None:
        return False
    try:
        again = classifier(embedding)
    except (IndexError, RuntimeError, TypeError, ValueError):
        return False
    if not isinstance(again, Tensor) or again.shape != logits.shape:
        return False
    return again.is_meta or torch.allclose(again, logits, rtol=1e-3, atol=1e-5)
