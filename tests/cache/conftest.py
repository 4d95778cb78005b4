from dataclasses import replace

import pytest
import torch
from rich.console import Console

import crossdistill as cd
from crossdistill.cache import CacheFormat, TeacherCache, Work, build_cache, fingerprint
from crossdistill.config import AugmentConfig, LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.views import training_views

SILENT = Console(quiet=True)
LOADER = LoaderConfig(batch_size=16, max_train=50, views=2)
FLIPS = AugmentConfig(hflip=0.5)


class Pair:
    """A teacher, its views and its record: what a cache is made of."""

    def __init__(self, loader=LOADER, augment=FLIPS, teacher=None, student="test_vit"):
        self.loader, self.augment = loader, augment
        self.data = load_data("digits", loader)
        torch.manual_seed(0)
        args = {"patch_size": 8} if "vit" in student else {}
        self.student = cd.create_backbone(student, 10, 32, in_chans=1, **args)
        self.backbone = teacher or cd.create_backbone("test_resnet", 10, 32, in_chans=1)
        self.distiller = cd.create_distiller("rsd", student=self.student, teacher=self.backbone)
        self.teacher = self.distiller.teacher
        resident = loader.resident is not False
        self.views = training_views(
            self.data.train, augment, self.student.spec, 32, seed=loader.view_seed, resident=resident
        )
        self.format = CacheFormat(
            len(self.data.train), self.backbone.spec.embedding_dim, self.backbone.spec.num_classes, shard_images=16
        )

    @property
    def record(self):
        return fingerprint(
            self.teacher,
            self.data.train,
            self.views,
            self.student.spec,
            augment=self.augment,
            view_seed=self.loader.view_seed,
            precision="32",
        )

    def build(self, folder, workers=0, **changes):
        fmt = replace(self.format, **changes)
        build_cache(folder, fmt, self.record, 2, Work(self.teacher, self.views, 8, workers), SILENT)
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
