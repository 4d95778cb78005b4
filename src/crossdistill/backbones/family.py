"""Tell what kind of network a backbone is, from its modules and never from its name."""

from torch import nn

from crossdistill.backbones.base import Backbone

_SPATIAL_CONVS = 4
_QUERIES = ("to_query", "to_q", "query", "q_proj")
"""Names of the projections of attention, beside those with "qkv", also where it has no heads (linear attention)."""
_HEADS = ("num_heads", "n_heads")


def is_convolutional(backbone: Backbone) -> bool:
    """Return whether a network mixes positions by convolutions (or pooling) alone, not by attention or MLPs.

    A CNN has spatial convolutions beyond its stem (a kernel larger than its stride, at least four times) and no module
    with attention heads or a projection to queries. Hybrids count as attention.
    """
    modules = list(backbone.model.modules())
    heads = any(isinstance(getattr(m, name, None), int) for m in modules for name in _HEADS)
    names = [name.rpartition(".")[2] for name, _ in backbone.model.named_modules()]
    if heads or any(name in _QUERIES or "qkv" in name for name in names):
        return False
    spatial = [m for m in modules if isinstance(m, nn.Conv2d) and max(m.kernel_size) > max(m.stride)]
    return len(spatial) >= _SPATIAL_CONVS
