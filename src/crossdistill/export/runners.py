"""Ways to run a student, which all answer for images as they are decoded."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from crossdistill.backbones import Backbone
from crossdistill.data.preprocessing import Preprocessing
from crossdistill.errors import UserError

Prepare = Callable[[Image.Image], Any]


class Runner(Protocol):
    """A model that answers for images."""

    def prepare(self, image: Image.Image) -> Any:
        """Return an image, as `read_picture` decodes it, as an input of `run`."""
        ...

    def run(self, inputs: list[Any]) -> tuple[Any, Any]:
        """Return logits (B, K), or None, and embeddings (B, D), or None, as arrays."""
        ...


class TorchModel:
    """A backbone, on a device."""

    def __init__(self, backbone: Backbone, look: Preprocessing, device: torch.device | str = "cpu") -> None:
        self.backbone = backbone.to(device).eval()
        self.preprocessing = look
        self.device = device

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits; numbers where they have none."""
        names = self.backbone.class_names
        return names or tuple(str(number) for number in range(self.backbone.spec.num_classes))

    def prepare(self, image: Image.Image) -> Any:
        """Return an image as float32 (C, H, W)."""
        return torch.from_numpy(self.preprocessing(image))

    @torch.inference_mode()
    def run(self, inputs: list[Any]) -> tuple[Any, Any]:
        """Return logits (B, K), or None without a classifier, and embeddings (B, D)."""
        output = self.backbone(torch.stack(inputs).to(self.device))
        logits = None if output.logits is None else output.logits.float().cpu().numpy()
        return logits, output.embedding.float().cpu().numpy()


class TimmModel:
    """An exported folder, loaded and fed by timm alone."""

    def __init__(self, folder: Path) -> None:
        self._model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        data = resolve_model_data_config(self._model)
        self._transform = create_transform(**data, is_training=False)
        self._mode = "RGB" if data["input_size"][0] == 3 else "L"

    def prepare(self, image: Image.Image) -> Any:
        """Return an image as timm's own transform makes it, from the channels that the model has."""
        return self._transform(image.convert(self._mode))

    @torch.inference_mode()
    def run(self, inputs: list[Any]) -> tuple[Any, Any]:
        """Return the output of the model: logits, or without a classifier embeddings."""
        output = self._model(torch.stack(inputs)).numpy()
        return (output, None) if self._model.num_classes else (None, output)


class ProgramModel:
    """A program of torch.export, read back from its file."""

    def __init__(self, path: Path, look: Preprocessing, classified: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about buffers that are not written to
            self._module = torch.export.load(path).module()
        self.preprocessing = look
        self._classified = classified

    def prepare(self, image: Image.Image) -> Any:
        """Return an image as float32 (C, H, W)."""
        return torch.from_numpy(self.preprocessing(image))

    @torch.inference_mode()
    def run(self, inputs: list[Any]) -> tuple[Any, Any]:
        """Return logits (B, K), or None without a classifier, and embeddings (B, D)."""
        outputs = [values.numpy() for values in self._module(torch.stack(inputs))]
        return (outputs[0], outputs[1]) if self._classified else (None, outputs[0])


def check_finite_weights(backbone: Backbone, owner: str) -> None:
    """Raise UserError for a network with a weight that is not finite."""
    for name, values in backbone.model.state_dict().items():
        if not bool(torch.isfinite(values).all()):
            raise UserError(f"{owner!r}: the weight {name!r} holds values that are not finite; such a model is useless")
