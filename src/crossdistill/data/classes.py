"""Classes are identified by their names."""

from collections.abc import Iterable

from crossdistill.backbones.base import Backbone
from crossdistill.backbones.classes import reorder_classes
from crossdistill.data.class_names import canonical_name, name_difference
from crossdistill.data.splits import ImageData
from crossdistill.errors import UserError


def match_classes(backbone: Backbone, owner: str, data: ImageData) -> None:
    """Put a network's classes into the order of the data, by their names; without names nothing is changed.

    Raises UserError, with the difference, for a network whose classes have other names.
    """
    match_names(backbone, owner, data.class_names, repr(data.name))


def match_names(backbone: Backbone, owner: str, goal: tuple[str, ...], whose: str) -> None:
    """Put a network's classes into the order `goal`, by their names; without names nothing is changed.

    Raises UserError, with the difference, for a network whose classes have other names.
    """
    names = backbone.class_names
    if names is None or names == goal:
        return
    # The same name can be stored in two forms of Unicode: systems differ in the form of their files' names.
    number = {canonical_name(name): place for place, name in enumerate(names)}
    wanted = [canonical_name(name) for name in goal]
    if len(number) < len(names) or len(set(wanted)) < len(wanted) or set(number) != set(wanted):
        difference = name_difference("the model", names, "the data", goal)
        raise UserError(f"the model in {owner!r} knows other classes than {whose}: {difference}")
    reorder_classes(backbone, [number[name] for name in wanted])
    backbone.class_names = goal


def has_classes_of(data: ImageData, backbones: Iterable[Backbone]) -> bool:
    """Return whether the logits of networks are those of the data's classes, as far as is known."""
    return all(
        one.spec.num_classes == data.num_classes and one.class_names in (None, data.class_names) for one in backbones
    )
