"""The data of a run as Lightning expects it: a part for each process, and after a resume the rest of an epoch."""

from typing import Any

import lightning.pytorch as L
from torch.utils.data import DataLoader, Dataset

from crossdistill.config import LoaderConfig
from crossdistill.data.loaders import ViewSampler, make_loader
from crossdistill.data.mixed import MixedSampler


class DataModule(L.LightningDataModule):
    """Loaders of training views and of held-out views; the order of an epoch comes from `seed`.

    `labelled` is the number of training images with labels, where others have none.
    """

    def __init__(
        self, train: Dataset[Any], val: Dataset[Any], loader: LoaderConfig, *, seed: int, labelled: int | None = None
    ) -> None:
        super().__init__()
        self.train, self.val, self.seed = train, val, seed
        self.batch_size, self.views = loader.batch_size, loader.views
        self.labelled, self.part = labelled, loader.labelled_part
        self.workers = 0 if loader.resident else loader.workers

    def train_sampler(self, rank: int, world: int) -> ViewSampler:
        """Make the sampler of one process."""
        size = len(self.train)  # type: ignore[arg-type]
        common = (size, self.batch_size, self.seed, rank, world, self.views)
        if self.labelled is None:
            return ViewSampler(*common)
        return MixedSampler(self.labelled, self.part, *common)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return seeded views; after a resume, first those that the interrupted epoch has not used."""
        trainer = self.trainer
        assert trainer is not None
        sampler = self.train_sampler(trainer.global_rank, trainer.world_size)
        seen = trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
        epoch, sampler.start_batch = divmod(seen, sampler.batches)
        sampler.set_epoch(epoch)
        return make_loader(self.train, sampler, workers=self.workers)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return every held-out image once, over all processes."""
        trainer = self.trainer
        assert trainer is not None
        size = len(self.val)  # type: ignore[arg-type]
        sampler = ViewSampler(size, self.batch_size, rank=trainer.global_rank, world=trainer.world_size)
        return make_loader(self.val, sampler, workers=self.workers)
