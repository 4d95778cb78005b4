"""Images in: data sets, splits, transforms, seeded batches.

Names are imported when they are first used: what reads one image (`picture`, `preprocessing`) needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossdistill.data.datasets import Images as Images
    from crossdistill.data.splits import ImageData as ImageData
    from crossdistill.data.splits import load_data as load_data

_MODULES = {"Images": "datasets", "ImageData": "splits", "load_data": "splits"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'crossdistill.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"crossdistill.data.{_MODULES[name]}"), name)
