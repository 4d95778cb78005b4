"""The data set as Lightning asks for it: each process its share, a resumed epoch its rest."""

import math
from typing import Any

import lightning.pytorch as L
from torch.utils.data import DataLoader

from crossdistill.config import RunConfig
from crossdistill.data import ImageData
from crossdistill.data.loaders import ViewSampler, make_loader
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

    def batches_per_epoch(self, world: int) -> int:
        """Count the training batches of one process."""
        size = self.config.loader.batch_size
        return math.ceil(len(ViewSampler(len(self.data.train), size, self.config.seed, 0, world)) / size)

    def train_dataloader(self) -> DataLoader[Any]:
        """Give seeded views; after a resume, first those that the interrupted epoch has not seen."""
        assert self.trainer is not None
        loader = make_loader(
            self.data.train,
            self.train_transform,
            self.config.loader.batch_size,
            seed=self.config.seed,
            workers=self.config.loader.workers,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
        sampler = loader.sampler
        assert isinstance(sampler, ViewSampler)
        seen = self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        epoch, sampler.start_batch = divmod(seen, len(loader))
        sampler.set_epoch(epoch)
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Give every held-out image once, over all processes."""
        assert self.trainer is not None
        return make_loader(
            self.data.val,
            self.eval_transform,
            self.config.loader.batch_size,
            workers=self.config.loader.workers,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )
