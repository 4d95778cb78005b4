"""Where in an image a network finds its class: how much covering a part lowers the probability.

Occlusion (Zeiler and Fergus, arXiv 1311.2901) reads only the output, so it works for every architecture. Methods of
gradients need the layer to look at and the layout of its tokens, which differ from model to model.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from crossdistill.types import BackboneOutput

_AT_ONCE = 32


@torch.inference_mode()
def class_evidence(
    model: Callable[[Tensor], BackboneOutput], image: Float[Tensor, "channels height width"], number: int, grid: int = 8
) -> Float[Tensor, "grid grid"]:
    """Return how much the probability of a class falls when each cell of a grid is covered; negative where it rises.

    A cell is covered by 0, the mean colour of a normalised image. `model` is in eval mode.
    """
    height, width = image.shape[1:]
    rows = torch.linspace(0, height, grid + 1).round().long().tolist()
    columns = torch.linspace(0, width, grid + 1).round().long().tolist()
    covered = image.repeat(grid * grid, 1, 1, 1)
    for place in range(grid * grid):
        row, column = divmod(place, grid)
        covered[place, :, rows[row] : rows[row + 1], columns[column] : columns[column + 1]] = 0
    whole = _probability(model, image[None], number)
    parts = torch.cat([_probability(model, batch, number) for batch in covered.split(_AT_ONCE)])
    return (whole - parts).view(grid, grid).cpu()


def _probability(model: Callable[[Tensor], BackboneOutput], images: Tensor, number: int) -> Tensor:
    return model(images).require_logits().float().softmax(dim=1)[:, number]
