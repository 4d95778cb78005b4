"""Methods of installed packages, by the entry points of the group `crossdistill.methods`."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from crossdistill.errors import UserError, kind_and_line

GROUP = "crossdistill.methods"


def installed_methods() -> dict[str, EntryPoint]:
    """Return the methods that installed packages name, without importing them."""
    return {point.name: point for point in entry_points(group=GROUP)}


def package_of(point: EntryPoint) -> str:
    """Return the name of the package that an entry point belongs to."""
    return "?" if point.dist is None else point.dist.name


def load_installed(name: str) -> Any:
    """Import what an entry point names. Raises UserError where that fails, or where two packages have the name."""
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if len({point.value for point in points}) > 1:
        owners = " and ".join(sorted(repr(package_of(point)) for point in points))
        raise UserError(f"method {name!r} is in the packages {owners}; give its class as package.module:Class")
    try:
        return points[0].load()
    except Exception as error:  # the code of a module can raise anything
        raise UserError(
            f"method {name!r} of the package {package_of(points[0])!r} cannot be imported ({kind_and_line(error)})"
        ) from error
