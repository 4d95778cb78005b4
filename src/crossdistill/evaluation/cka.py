"""Centred kernel alignment: how alike two networks' features of the same images are, layer by layer."""

from collections.abc import Sequence
from math import nan

import torch
from jaxtyping import Float
from torch import Tensor

LEAST = 4
"""Images that the estimate needs."""


def unbiased_hsic(first: Float[Tensor, "n n"], second: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Estimate the Hilbert-Schmidt independence criterion of two Gram matrices of the same n >= 4 images, unbiased.

    Computed in float64. Raises ValueError for fewer than 4 images.

    Source: Song et al. 2012 (JMLR 13, section 3), as used in arXiv 2010.15327, equation 3.
    """
    n = len(first)
    if n < LEAST:
        raise ValueError(f"{n} images; the estimate needs at least {LEAST}")
    k, l = (gram.double() - torch.diag(gram.double().diagonal()) for gram in (first, second))  # noqa: E741
    rows_k, rows_l = k.sum(dim=1), l.sum(dim=1)
    found = (k * l).sum() + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_k @ rows_l)
    return found / (n * (n - 3))


class CKA:
    """Linear CKA between the layers of two networks, from batches of images.

    1 for features that are equal up to rotation and scale, about 0 for independent ones. The sums of the unbiased
    estimates over batches do not depend on the size of the batches but for noise.

    Source: arXiv 1905.00414 (linear CKA); over batches arXiv 2010.15327.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add the features of a batch of at least 4 images: for each layer (n, ...), of both networks."""
        grams = [[_gram(layer) for layer in layers] for layers in (first, second)]
        cross = torch.stack([torch.stack([unbiased_hsic(a, b) for b in grams[1]]) for a in grams[0]])
        own = [torch.stack([unbiased_hsic(gram, gram) for gram in layers]) for layers in grams]
        # One matrix: the cross terms, and those of each network with itself in a last column and a last row.
        sums = torch.zeros(len(first) + 1, len(second) + 1, dtype=torch.float64)
        sums[:-1, :-1], sums[:-1, -1], sums[-1, :-1] = cross.cpu(), own[0].cpu(), own[1].cpu()
        self._sums = sums if self._sums is None else self._sums + sums

    def compute(self) -> Float[Tensor, "first second"]:
        """Return the matrix of alignments; nan for a layer that is the same for all images. Raises ValueError."""
        if self._sums is None:
            raise ValueError("no batch was added")
        # The estimate for a layer that hardly differs between images can be below zero.
        first, second = (own.where(own > 0, nan) for own in (self._sums[:-1, -1:], self._sums[-1:, :-1]))
        return self._sums[:-1, :-1] / (first * second).sqrt()


def _gram(features: Tensor) -> Tensor:
    rows = features.flatten(1).double()
    # The estimate does not depend on the mean; without it the numbers are smaller.
    rows = rows - rows.mean(dim=0)
    return rows @ rows.T
