from dataclasses import replace

import pytest
import torch
from rich.console import Console

import crossdistill as cd
from crossdistill.cache import CacheFormat, TeacherCache, build_cache, fingerprint
from crossdistill.config import AugmentConfig, LoaderConfig, ModelConfig, RunConfig
from crossdistill.data import load_data
from crossdistill.training.datamodule import DataModule

SILENT = Console(quiet=True)
CONFIG = RunConfig(
    student="test_vit",
    teacher="test_resnet",
    img_size=32,
    model=ModelConfig(stem="native"),
    loader=LoaderConfig(batch_size=16, max_train=50, views=2),
    augment=AugmentConfig(hflip=0.5),
)


class Pair:
    """A teacher, its views and its record: what a cache is made of."""

    def __init__(self, config=CONFIG, teacher=None, student="test_vit"):
        self.config = config
        self.data = load_data("digits", config.loader)
        torch.manual_seed(0)
        args = {"patch_size": 8} if "vit" in student else {}
        self.student = cd.create_backbone(student, 10, 32, in_chans=1, **args)
        self.backbone = teacher or cd.create_backbone("test_resnet", 10, 32, in_chans=1)
        self.distiller = cd.create_distiller("rsd", student=self.student, teacher=self.backbone)
        self.teacher = self.distiller.teacher
        self.module = DataModule(self.data, config, self.student.spec, 32)
        self.views = self.module.train_views(torch.device("cpu"))
        self.format = CacheFormat(len(self.data.train), self.backbone.spec.embedding_dim, 10, shard_images=16)

    @property
    def record(self):
        return fingerprint(self.config, self.teacher, self.data.train, self.views, self.student.spec)

    def build(self, folder, **changes):
        fmt = replace(self.format, **changes)
        build_cache(folder, fmt, self.record, 2, self.teacher, self.views, batch_size=8, console=SILENT)
        return folder


@pytest.fixture(scope="session")
def pair():
    return Pair()


@pytest.fixture(scope="session")
def folder(pair, tmp_path_factory):
    return pair.build(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def written(folder):
    return TeacherCache(folder, 2)
