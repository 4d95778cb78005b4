"""CRD's contrast: the embedding of the same image against those of other images, by noise-contrastive estimation."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crossdistill.distributed import global_sum
from crossdistill.losses._context import check_temperature, full_precision

_EPS = 1e-7
"""Added to the sums under the logarithm, as in the public implementations."""


@full_precision
def crd_similarities(
    anchors: Float[Tensor, "batch width"], others: Float[Tensor, "others width"], *, temperature: float = 0.07
) -> Float[Tensor, "batch others"]:
    """Return exp(cosine / `temperature`) of all pairs of unit rows.

    Matrices (B, D) and (K, D) of any float dtype; computed in float32 or wider. Raises ValueError if temperature <= 0.
    """
    check_temperature(temperature)
    return (anchors @ others.T / temperature).exp()


@full_precision
def crd_loss(
    positive: Float[Tensor, " batch"],
    negatives: Float[Tensor, "batch others"],
    counted: Bool[Tensor, "batch others"],
    *,
    normaliser: Float[Tensor, ""],
    noise: float,
) -> Float[Tensor, ""]:
    """Binary cross entropy of telling the pair of one image from pairs of two, summed over pairs, mean over the batch.

    `positive` (B,) and `negatives` (B, K) are exp(similarity / temperature), of any float dtype; `counted` says which
    negatives are used (not those of the same class). With p = value / `normaliser`, a pair is of one image with
    probability p / (p + noise), where `noise` is K / N for N training images. Computed in float32 or wider. In nats; at
    least 0. Each process returns the loss of its own rows.

    Source: CRD, ICLR 2020, arXiv 1910.10699, eq. 18 and 19.
    """
    same, other = positive / normaliser, negatives / normaliser
    found = torch.log(same / (same + noise + _EPS))
    rejected = torch.log(noise / (other + noise + _EPS)) * counted
    return -(found + rejected.sum(dim=1)).mean()


def crd_normaliser(negatives: Float[Tensor, "batch others"], images: int) -> Float[Tensor, ""]:
    """Estimate the normaliser: N times the mean of exp(similarity / temperature) over all processes."""
    values = negatives.detach().float()
    return global_sum(values.sum()) / global_sum(values.new_full((), values.numel())) * images
