"""A student as a program: torch.export and ONNX, with its description inside."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.backbones import Backbone
from crossdistill.errors import UserError, kind_and_line
from crossdistill.export.about import METADATA, About
from crossdistill.image_size import sides_of


class Outputs(nn.Module):
    """A backbone that returns plain tensors: logits (B, K), where it has a classifier, and embedding (B, D)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run images (B, C, H, W), normalised."""
        output = self.backbone(images)
        return (output.embedding,) if output.logits is None else (output.logits, output.embedding)


def output_names(backbone: Backbone) -> list[str]:
    """Return the names of the outputs of `Outputs`, in order."""
    return ["logits", "embedding"] if backbone.spec.num_classes else ["embedding"]


def export_program(backbone: Backbone) -> torch.export.ExportedProgram:
    """Trace a backbone with any number of images in a batch. Raises UserError for a network that cannot be traced."""
    images = torch.zeros(2, backbone.spec.in_chans, *sides_of(backbone.img_size))
    shapes = {"images": {0: torch.export.Dim("batch")}}
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(Outputs(backbone).eval(), (images,), dynamic_shapes=shapes)
    except Exception as error:  # tracing runs the network's own code
        raise UserError(
            f"{backbone.spec.name!r} cannot be exported with a batch of any size ({kind_and_line(error)}); --to timm "
            "exports its weights"
        ) from error


def save_program(program: torch.export.ExportedProgram, path: Path, about: About) -> None:
    """Write a program in torch.export's format, with its description."""
    torch.export.save(program, path, extra_files={METADATA: json.dumps(asdict(about))})


def make_onnx(program: torch.export.ExportedProgram, backbone: Backbone) -> Any:
    """Return a program as an ONNX model (`onnx.ModelProto`). Raises UserError for an operator that ONNX lacks."""
    try:
        with _quiet():
            made = torch.onnx.export(
                program, (), dynamo=True, input_names=["images"], output_names=output_names(backbone), verbose=False
            )
    except Exception as error:  # the exporter has an error of its own for each of its steps
        raise UserError(f"{backbone.spec.name!r} cannot be written as ONNX ({kind_and_line(error)})") from error
    assert made is not None
    return made.model_proto


def save_onnx(model: Any, path: Path, about: About) -> None:
    """Write an ONNX model with its description. Raises UserError for one that ONNX's own check refuses."""
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA: json.dumps(asdict(about))})
    onnx.save(model, str(path))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise UserError(f"the ONNX file is not valid: {kind_and_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about its own future."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
