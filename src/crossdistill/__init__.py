"""crossdistill: move what one vision network knows into another of a different kind.

Names are imported when they are first used, so that the command line answers before torch is loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from crossdistill import losses as losses
    from crossdistill.backbones import Backbone as Backbone
    from crossdistill.backbones import create_backbone as create_backbone
    from crossdistill.backbones import load_backbone as load_backbone
    from crossdistill.distiller import Distiller as Distiller
    from crossdistill.distiller import create_distiller as create_distiller
    from crossdistill.methods import list_methods as list_methods

_HOMES = {
    "losses": "crossdistill.losses",
    "Backbone": "crossdistill.backbones",
    "create_backbone": "crossdistill.backbones",
    "load_backbone": "crossdistill.backbones",
    "Distiller": "crossdistill.distiller",
    "create_distiller": "crossdistill.distiller",
    "list_methods": "crossdistill.methods",
    "UserError": "crossdistill.errors",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'crossdistill' has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    return module if name == "losses" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
