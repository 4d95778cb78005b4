"""The order of a network's classes, changed in its classifier."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from crossdistill.backbones._probe import evaluating, probe_images
from crossdistill.backbones.base import Backbone
from crossdistill.backbones.structure import is_classifier
from crossdistill.errors import UserError


@torch.no_grad()
def reorder_classes(backbone: Backbone, order: Sequence[int]) -> None:
    """Put a network's logits into another order: logit i becomes the one that was number order[i].

    The rows of its classifier are exchanged, so that everything that reads the network agrees. Raises UserError for a
    network whose classifier cannot be found; its weights are then unchanged.
    """
    places = torch.tensor(order)
    with evaluating(backbone):
        images = probe_images(backbone.model, backbone.spec.in_chans, backbone.img_size)
        before = backbone(images).require_logits()
        for layers in _classifiers(backbone, len(order)):
            _exchange(layers, places)
            after = backbone(images).require_logits()
            if torch.allclose(after, before[:, places.to(before.device)], rtol=1e-3, atol=1e-5):
                return
            _exchange(layers, places.argsort())
    raise UserError(
        f"the classes of {backbone.spec.name!r} are in another order than those of the data, and its classifier was "
        "not found, so they cannot be put into the data's order"
    )


def _classifiers(backbone: Backbone, num_classes: int) -> Iterable[list[nn.Module]]:
    """Yield what may be the classifier: what the network calls so, then all layers of its width, then the last one."""
    ask = getattr(backbone.model, "get_classifier", None)
    if callable(ask):
        named = ask()
        heads = named if isinstance(named, tuple | list) else [named]
        inner = [layer for head in heads if isinstance(head, nn.Module) for layer in head.modules()]
        yield [layer for layer in inner if is_classifier(layer, num_classes)]
    layers = [layer for layer in backbone.model.modules() if is_classifier(layer, num_classes)]
    yield layers
    yield layers[-1:]


def _exchange(layers: Iterable[nn.Module], places: Tensor) -> None:
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            parameter.copy_(parameter[places.to(parameter.device)].clone())
