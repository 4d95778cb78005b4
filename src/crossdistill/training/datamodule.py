"""The data set as Lightning asks for it: each process its share, a resumed epoch its rest."""

import math
from dataclasses import replace
from typing import Any

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Dataset

from crossdistill.config import AugmentConfig, RunConfig
from crossdistill.data import ImageData, Images
from crossdistill.data.loaders import Stored, Views, ViewSampler, load_views
from crossdistill.data.resident import ResidentViews, lives_on_device
from crossdistill.data.transforms import eval_transform, train_transform
from crossdistill.errors import UserError, first_line
from crossdistill.types import BackboneSpec


class DataModule(L.LightningDataModule):
    """Loaders of training views and of the held-out split, normalised for the student."""

    def __init__(self, data: ImageData, config: RunConfig, student: BackboneSpec, img_size: int) -> None:
        super().__init__()
        self.data = data
        self.config = config
        try:
            self.train_transform = train_transform(config.augment, student, img_size)
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"augment: timm does not take {config.augment.auto_augment!r} ({first_line(error)})"
            ) from error
        self.eval_transform = eval_transform(config.augment, student, img_size)
        self.student = student
        self.resident = lives_on_device(config.loader, config.augment, img_size, student.in_chans, len(data.train))
        # Brought to size, not cropped or flipped: that is done on the device.
        self._plain = train_transform(replace(config.augment, crop="none", hflip=0.0), student, img_size)
        self.stored: Stored | None = None
        """The teacher's stored outputs, of which every training batch then brings its rows."""
        self.val_sampler: ViewSampler | None = None
        self._views: dict[str, ResidentViews] = {}

    def batches_per_epoch(self, world: int) -> int:
        """Count the training batches of one process."""
        size = self.config.loader.batch_size
        return math.ceil(len(ViewSampler(len(self.data.train), size, self.config.seed, 0, world)) / size)

    def train_views(self, device: torch.device) -> Dataset[Any]:
        """Give the training images' views by (image, view)."""
        config = self.config
        seed = config.seed if config.views is None else config.loader.view_seed
        if not self.resident:
            return Views(self.data.train, self.train_transform, seed, self.stored)
        views = self._on_device("train", self.data.train, self._plain, device, config.augment, seed)
        views.stored = self.stored
        return views

    def _on_device(
        self,
        split: str,
        images: Images,
        plain: Any,
        device: torch.device,
        augment: AugmentConfig | None = None,
        seed: int = 0,
    ) -> ResidentViews:
        if split not in self._views:
            self._views[split] = ResidentViews(images, plain, self.student, augment, seed=seed, device=device)
        return self._views[split]

    def train_dataloader(self) -> DataLoader[Any]:
        """Give seeded views; after a resume, first those that the interrupted epoch has not seen."""
        trainer, config = self.trainer, self.config
        assert trainer is not None
        sampler = ViewSampler(
            len(self.data.train),
            config.loader.batch_size,
            config.seed,
            trainer.global_rank,
            trainer.world_size,
            config.views,
        )
        workers = 0 if self.resident else config.loader.workers
        loader = load_views(self.train_views(trainer.strategy.root_device), sampler, workers=workers)
        seen = trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        epoch, sampler.start_batch = divmod(seen, len(loader))
        sampler.set_epoch(epoch)
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Give every held-out image once, over all processes."""
        trainer, config = self.trainer, self.config
        assert trainer is not None
        sampler = self.val_sampler = ViewSampler(
            len(self.data.val), config.loader.batch_size, rank=trainer.global_rank, world=trainer.world_size
        )
        if not self.resident:
            return load_views(Views(self.data.val, self.eval_transform), sampler, workers=config.loader.workers)
        return load_views(
            self._on_device("val", self.data.val, self.eval_transform, trainer.strategy.root_device), sampler
        )
