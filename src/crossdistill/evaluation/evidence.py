"""Where in an image a network finds its class: how much covering a part lowers the probability.

Occlusion (Zeiler and Fergus, arXiv 1311.2901), by captum. It reads only the output, so it works for every
architecture. Methods of gradients need the layer to look at and the layout of its tokens, which differ from model to
model.
"""

from collections.abc import Callable
from math import ceil

from captum.attr import Occlusion
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from crossdistill.types import BackboneOutput

_AT_ONCE = 32


def class_evidence(
    model: Callable[[Tensor], BackboneOutput], image: Float[Tensor, "channels height width"], number: int, grid: int = 8
) -> Float[Tensor, "grid grid"]:
    """Return how much the probability of a class falls when each cell of a grid is covered; negative where it rises.

    A cell is covered by 0, the mean colour of a normalised image. `model` is in eval mode.
    """

    def probabilities(images: Tensor) -> Tensor:
        return model(images).require_logits().float().softmax(dim=1)

    channels, height, width = image.shape
    cell = ceil(height / grid), ceil(width / grid)
    found: Tensor = Occlusion(probabilities).attribute(
        image[None], sliding_window_shapes=(channels, *cell), strides=(channels, *cell), target=number,
        perturbations_per_eval=_AT_ONCE,
    )  # fmt: skip
    return adaptive_avg_pool2d(found.mean(dim=1), grid)[0].cpu()
