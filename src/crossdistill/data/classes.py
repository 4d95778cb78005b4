"""Classes are identified by their names."""

from collections.abc import Sequence

from crossdistill.data.splits import ImageData
from crossdistill.errors import UserError


def check_class_order(names: Sequence[str] | None, owner: str, data: ImageData) -> None:
    """Raise UserError where a model has the data's classes in another order."""
    if names and sorted(names) == sorted(data.class_names) and tuple(names) != data.class_names:
        wrong = next(i for i, (a, b) in enumerate(zip(names, data.class_names, strict=True)) if a != b)
        raise UserError(
            f"the model in {owner!r} has the classes of {data.name!r} in another order: its class {wrong} is "
            f"{names[wrong]!r}, the data's is {data.class_names[wrong]!r}"
        )
