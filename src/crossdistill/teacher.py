"""The teacher: a guest that is looked at and never changed."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.backbones import Backbone
from crossdistill.types import BackboneOutput, BackboneSpec


class Teacher(nn.Module):
    """A frozen backbone that accepts the student's images.

    Its parameters require no gradient and it stays in eval mode whatever calls `train`. It turns
    images normalised for the student into its own normalisation and input size (bilinear,
    antialiased). Outputs are made under `no_grad`, not `inference_mode`: they may enter the graph
    of a method's projectors.
    """

    def __init__(self, backbone: Backbone, student: BackboneSpec) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.spec = backbone.spec
        self.scale: Tensor
        self.shift: Tensor
        scale, shift = renormalisation(student.mean, student.std, backbone.spec.mean, backbone.spec.std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self._same_normalisation = student.mean == backbone.spec.mean and student.std == backbone.spec.std
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images normalised for the student into the teacher's normalisation and size."""
        if not self._same_normalisation:
            images = images * self.scale + self.shift
        size = (self.backbone.img_size, self.backbone.img_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return images

    @torch.no_grad()
    def forward(self, images: Tensor, stages: bool = False) -> BackboneOutput:
        """Look at images (B, C, H, W) normalised for the student."""
        if self.backbone.training:  # whoever built it may still hold it
            self.backbone.eval()
        output: BackboneOutput = self.backbone(self.prepare(images), stages=stages)
        return output


def renormalisation(
    mean: Sequence[float], std: Sequence[float], new_mean: Sequence[float], new_std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Give scale and shift (1, C, 1, 1) that turn images of one normalisation into another's."""
    # new = ((x * std + mean) - new_mean) / new_std, as one multiply and one add per channel.
    m, s, new_m, new_s = (
        torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std, new_mean, new_std)
    )
    return (s / new_s).float(), ((m - new_m) / new_s).float()
