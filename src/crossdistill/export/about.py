"""What an exported model says about itself, and the optional packages of exports. No torch."""

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

from crossdistill.config.validation import settings
from crossdistill.data.picture import RULES
from crossdistill.data.preprocessing import Preprocessing
from crossdistill.errors import UserError

PROGRAM_FILE = "student.pt2"
METADATA = "crossdistill"
"""Key of the description (JSON) in the metadata of an ONNX file and in the extra files of a torch.export archive."""


@settings
class About:
    """The description inside an exported file."""

    model: str
    class_names: list[str]
    """In the order of the logits; empty for a network without a classifier."""
    preprocessing: Preprocessing
    input: Literal["tensor", "image"] = "tensor"
    """"tensor": float32 (batch, channels, height, width), preprocessed. "image": uint8 (batch, height, width, channels)
    of any size, which the graph resizes and normalises."""
    image_rules: Any = None
    """How a file becomes pixels."""
    weights_sha256: str | None = None


def describe(
    model: str, class_names: Sequence[str], look: Preprocessing, *, input: Any = "tensor", weights: str | None = None
) -> About:
    """Describe a model, with the rules by which this version reads images."""
    return About(
        model=model,
        class_names=list(class_names),
        preprocessing=look,
        input=input,
        image_rules=RULES,
        weights_sha256=weights,
    )


def require_packages(purpose: str, *names: str) -> None:
    """Raise UserError, with the command that installs them, where packages of the extra `onnx` are missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{purpose} needs {', '.join(missing)}: pip install 'crossdistill[onnx]'")
