"""The one face that every model wears here."""

from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from crossdistill.errors import UserError
from crossdistill.types import BackboneOutput, BackboneSpec


class Backbone(nn.Module):
    """A classifier that gives logits, pooled embedding and, when asked, four stage maps in one forward.

    `model` is the plain network, `spec` what it says of itself, `img_size` the side in pixels it
    was built for, `recipe` the arguments of `create_backbone` it can be built from again.
    """

    model: nn.Module
    spec: BackboneSpec
    img_size: int
    recipe: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.stage_problem: str | None = None
        """Why the stages cannot be read; None where they can."""

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the architecture keeps free of weight decay."""
        ask = getattr(self.model, "no_weight_decay", None)
        return {f"model.{name}" for name in ask()} if callable(ask) else set()

    def require_stages(self) -> None:
        """Raise UserError, with the missing capability and the way out, where stages cannot be read."""
        if self.stage_problem is not None:
            raise UserError(
                f"stages of {self.spec.name!r} cannot be read: {self.stage_problem}. Name four of its modules, shallow "
                "to deep: create_backbone(..., stages=['name1', ..., 'name4']) or --model.student_stages / "
                "--model.teacher_stages"
            )

    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Look at images (B, C, H, W), normalised as `spec` says."""
        raise NotImplementedError


def expected_normalisation(model: nn.Module, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read the per-channel mean and std a model says it expects; ImageNet's where it says nothing."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    mean, std = cfg.get("mean", IMAGENET_DEFAULT_MEAN), cfg.get("std", IMAGENET_DEFAULT_STD)
    if len(mean) != in_chans:
        mean, std = (sum(mean) / len(mean),) * in_chans, (sum(std) / len(std),) * in_chans
    return tuple(float(v) for v in mean), tuple(float(v) for v in std)


def read_spec(model: nn.Module, output: BackboneOutput, name: str, img_size: int, in_chans: int) -> BackboneSpec:
    """Read what a backbone says of itself off one output."""
    maps = output.stages
    mean, std = expected_normalisation(model, in_chans)
    return BackboneSpec(
        name=name,
        num_classes=output.logits.shape[1],
        embedding_dim=output.embedding.shape[1],
        stage_channels=None if maps is None else tuple(m.shape[1] for m in maps),
        stage_strides=None if maps is None else tuple(round(img_size / m.shape[2]) for m in maps),
        in_chans=in_chans,
        mean=mean,
        std=std,
    )


def probe_images(model: nn.Module, in_chans: int, img_size: int) -> Tensor:
    """Two fixed noise images where the model is; draws nothing from the global generators."""
    like = next(model.parameters(), torch.empty(0))
    shape = (2, in_chans, img_size, img_size)
    if like.is_meta:
        return torch.empty(shape, device="meta", dtype=like.dtype)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(device=like.device, dtype=like.dtype)
