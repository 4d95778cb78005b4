"""The models that are measured, and the cases: student alone, each method online, each method on the cache."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from timm.optim import create_optimizer_v2

import crossdistill as cd
from crossdistill.backbones.pooling import pooled
from crossdistill.cache import CacheFormat, TeacherCache, Work, build_cache
from crossdistill.config import AugmentConfig
from crossdistill.data.datasets import Arrays
from crossdistill.data.loaders import WithTeacher
from crossdistill.data.resident import ResidentViews
from crossdistill.data.transforms import resize_transform
from crossdistill.methods import choose_method

METHODS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in cd.list_methods() if name != "none"}
METHODS["rsd dense"] = ("rsd", {"spatial": 14, "spatial_stages": [2, 4]})
"""What is measured: methods with their options, by name."""
CLASSES = 100


@dataclass(frozen=True)
class Model:
    """A model of a family at one size."""

    name: str
    args: dict[str, Any]


# Small: models for two CPU cores at 32 px. Large: models of the sizes that papers compare, at 224 px.
MODELS = {
    32: {
        "cnn": Model("resnet10t", {}),
        "vit": Model("test_vit", {"patch_size": 4}),
        "mlp": Model("timm.models.mlp_mixer:MlpMixer", {"patch_size": 4, "embed_dim": 96, "num_blocks": 8}),
        "hybrid": Model("mobilevitv2_050", {}),
    },
    224: {
        "cnn": Model("resnet18", {}),
        "vit": Model("vit_tiny_patch16_224", {}),
        "mlp": Model("resmlp_12_224", {}),
        "hybrid": Model("mobilevitv2_100", {}),
    },
}
# A teacher is larger than the student at 224 px.
TEACHERS = {
    32: MODELS[32],
    224: {**MODELS[224], "cnn": Model("resnet50", {}), "vit": Model("vit_small_patch16_224", {})},
}
PAIRS = [("cnn", "vit"), ("vit", "cnn"), ("mlp", "cnn"), ("hybrid", "vit")]
BATCH = {"cpu": {32: 64, 224: 8}, "cuda": {32: 512, 224: 128}}


def build(model: Model, size: int) -> cd.backbones.Backbone:
    return cd.create_backbone(model.name, CLASSES, size, **model.args)


@dataclass
class Case:
    """One thing to time: `step` runs a whole training step of `distiller`, updated by `optimizer`."""

    name: str
    step: Callable[[], None]
    distiller: Any
    optimizer: Any


class Bench:
    """A pair of models with data on the device, a real cache on disk, and the cases."""

    def __init__(self, student: Model, teacher: Model, size: int, batch: int, device: str, precision: str) -> None:
        torch.manual_seed(0)
        self.device, self.precision, self.batch = torch.device(device), precision, batch
        self.student, self.teacher = build(student, size), build(teacher, size)
        pixels = np.random.default_rng(0).integers(0, 256, (2 * batch, size, size, 3), dtype=np.uint8)
        labels = (np.arange(2 * batch) % CLASSES).tolist()
        augment = AugmentConfig(crop="padded")
        self.spec = self.student.spec
        plain = resize_transform(augment, self.spec, size)
        self.views = ResidentViews(Arrays(pixels, labels), plain, self.spec, augment, device=self.device)
        self.keys = [(index, 0) for index in range(batch)]

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def distiller(self, method: str) -> Any:
        choice = choose_method(*METHODS.get(method, (method, {}))).for_images(len(self.views))
        models = {"student": copy.deepcopy(self.student), "teacher": copy.deepcopy(self.teacher)}
        return cd.create_distiller(choice, **models).to(self.device).train()

    def stored(self, method: str, folder: Path) -> TeacherCache:
        """Write the cache that a method needs, of one view of the data."""
        made = self.distiller(method)
        with torch.no_grad():
            output = made.teacher(self.views.__getitems__(self.keys[:2]).images, stages=True)
        reads = made.needs.teacher
        shapes = tuple((n, tuple(pooled(output.stages[n - 1], reads.side).shape[1:])) for n in reads.stages)
        fmt = CacheFormat(len(self.views), output.embedding.shape[1], CLASSES, stages=shapes)
        work = Work(made.teacher, self.views, self.batch)
        build_cache(folder, fmt, {"version": 0}, 1, work, Console(quiet=True))
        return TeacherCache(folder, 1)

    def case(self, name: str, method: str, cache: TeacherCache | None = None) -> Case:
        made = self.distiller(method)
        if cache is not None:
            made.release_teacher()
        optimizer = create_optimizer_v2(made, "adamw", lr=1e-4, weight_decay=0.05, fused=True)
        views = self.views if cache is None else WithTeacher(self.views, cache)

        def step() -> None:
            batch = views.__getitems__(self.keys)
            with self.autocast():
                result = made(batch.images, batch.targets, batch.teacher, batch.index)
            result.loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return Case(name, step, made, optimizer)

    def teacher_forward(self) -> Case:
        made = self.distiller("kd")

        def step() -> None:
            images = self.views.__getitems__(self.keys).images
            with self.autocast():
                made.teacher(images)

        return Case("teacher forward", step, made, None)


@contextmanager
def caches(bench: Bench) -> Iterator[Callable[[str], TeacherCache]]:
    """Yield a function that writes the cache of a method, in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield lambda method: bench.stored(method, Path(folder) / method)
