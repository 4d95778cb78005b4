"""The time that teacher, student and exported student take for a batch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crossdistill.backbones import Backbone, create_backbone, load_backbone
from crossdistill.config import RunConfig
from crossdistill.config.code import check_named_code, code_of
from crossdistill.errors import UserError
from crossdistill.export.latency import latency
from crossdistill.export.onnx_session import OnnxModel
from crossdistill.export.runners import Runner, TorchModel
from crossdistill.image_size import sides_of


def ship_latency(
    run: str, config: RunConfig, student: TorchModel, forms: Mapping[str, Runner], notes: list[str]
) -> dict[str, dict[str, float]]:
    """Return milliseconds for a batch, by model and batch size. What cannot be timed is added to `notes`."""
    return latency(_calls(run, config, student, forms, notes))


def _calls(
    run: str, config: RunConfig, student: TorchModel, forms: Mapping[str, Runner], notes: list[str]
) -> dict[str, Callable[[int], Callable[[], Any]]]:
    """Return functions that run a batch of each model."""
    found: dict[str, Callable[[int], Callable[[], Any]]] = {}
    for number, (name, checkpoint) in enumerate(config.teachers):
        try:
            check_named_code(code_of(config), str(Path(run) / "config.yaml"), (), trust=config.trust_code)
            teacher = _teacher(name, checkpoint, config, number, student.backbone.spec.in_chans)
        except UserError as error:
            notes.append(f"the teacher is not timed: {error}")
        else:
            found[f"teacher ({teacher.spec.name}), PyTorch"] = _torch_call(teacher)
    found["student, PyTorch"] = _torch_call(student.backbone)
    sides = student.preprocessing.input_size[1:]
    for name, model in forms.items():
        if isinstance(model, OnnxModel):
            found[f"student, {name}"] = _onnx_call(model, sides)
    return found


def _teacher(name: str | None, checkpoint: str | None, config: RunConfig, number: int, in_chans: int) -> Backbone:
    """Build a teacher for its speed; weights that are not those of a run are left out. Raises UserError."""
    if checkpoint is not None and Path(checkpoint).is_dir():
        return load_backbone(checkpoint, trust_code=config.trust_code).eval()
    if name is None:
        raise UserError(f"{checkpoint!r} is not there")
    size = config.model.teacher_img_size
    return create_backbone(
        name,
        1000,
        size[number] if isinstance(size, list) else size,
        in_chans,
        small_images=config.model.teacher_stem == "small",
        stages=config.model.teacher_stages,
        **config.model.teacher_args,
    ).eval()


def _torch_call(backbone: Backbone) -> Callable[[int], Callable[[], Any]]:
    def make(size: int) -> Callable[[], Any]:
        images = torch.zeros(size, backbone.spec.in_chans, *sides_of(backbone.img_size))

        def call() -> None:
            with torch.inference_mode():
                backbone(images)

        return call

    return make


def _onnx_call(model: OnnxModel, sides: Sequence[int]) -> Callable[[int], Callable[[], Any]]:
    def make(size: int) -> Callable[[], Any]:
        channels = model.preprocessing.input_size[0]
        tensor, image = (size, channels, *sides), (size, *sides, channels)
        as_image = model.about.input == "image"
        batch = np.zeros(image, np.uint8) if as_image else np.zeros(tensor, np.float32)
        return lambda: model.call(batch)

    return make
