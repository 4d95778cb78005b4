"""The student in a folder, for prediction with PyTorch."""

from typing import Literal

import torch

from crossdistill.backbones import load_backbone
from crossdistill.backbones.args import read_stored
from crossdistill.data.preprocessing import read_preprocessing
from crossdistill.errors import UserError
from crossdistill.export.runners import TorchModel, check_finite_weights


def load_exported(
    folder: str, threads: int | None, *, accelerator: Literal["auto", "cpu", "gpu"], trust_code: bool
) -> TorchModel:
    """Load the student of a run, or of a folder exported for timm. Raises UserError."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("--accelerator is gpu, but torch finds none here; leave it out, or give cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    backbone = load_backbone(folder, trust_code=trust_code)
    check_finite_weights(backbone, folder)
    look = read_preprocessing(read_stored(folder), f"{folder!r}: its preprocessing cannot be read: ")
    return TorchModel(backbone, look, "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
