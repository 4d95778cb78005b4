"""crossdistill: distil one image network into another of a different architecture.

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
    from crossdistill.errors import UserError as UserError
    from crossdistill.methods import Method as Method
    from crossdistill.methods import list_methods as list_methods
    from crossdistill.teacher import Teacher as Teacher
    from crossdistill.types import BackboneOutput as BackboneOutput
    from crossdistill.types import Batch as Batch
    from crossdistill.types import Needs as Needs
    from crossdistill.types import Reads as Reads
    from crossdistill.types import StepResult as StepResult

_MODULES = {
    "losses": "crossdistill",
    "Backbone": "crossdistill.backbones",
    "create_backbone": "crossdistill.backbones",
    "load_backbone": "crossdistill.backbones",
    "Distiller": "crossdistill.distiller",
    "create_distiller": "crossdistill.distiller",
    "UserError": "crossdistill.errors",
    "Method": "crossdistill.methods",
    "list_methods": "crossdistill.methods",
    "Teacher": "crossdistill.teacher",
    "BackboneOutput": "crossdistill.types",
    "Batch": "crossdistill.types",
    "Needs": "crossdistill.types",
    "Reads": "crossdistill.types",
    "StepResult": "crossdistill.types",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'crossdistill' has no attribute {name!r}")
    if name == "losses":
        return importlib.import_module("crossdistill.losses")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
