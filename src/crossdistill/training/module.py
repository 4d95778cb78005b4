"""The distiller as a LightningModule."""

import inspect
import math
import random
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.data import Mixup
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from crossdistill.backbones import Backbone
from crossdistill.cache import TeacherCache
from crossdistill.config import RunConfig
from crossdistill.data.loaders import mix_seed
from crossdistill.distiller import Distiller
from crossdistill.training.sharding import shard_teachers, shard_trained

SCHEDULES = ("cosine", "tanh", "wsd", "constant", "none")


class DistillModule(L.LightningModule):
    """What Lightning trains: the distiller, its optimiser, and the average of the student where one is kept."""

    def __init__(self, distiller: Distiller, config: RunConfig) -> None:
        super().__init__()
        self.distiller = distiller
        self._divided = False
        self.config = config
        num_classes = distiller.student.spec.num_classes
        augment, optim = config.augment, config.optim
        self.mixup = (
            Mixup(augment.mixup, augment.cutmix, label_smoothing=optim.label_smoothing, num_classes=num_classes)
            if augment.mixup or augment.cutmix
            else None
        )
        self.ema = ModelEmaV3(distiller.student, decay=optim.ema, use_warmup=True) if optim.ema is not None else None
        if self.ema is not None:
            # DDP waits for the gradient of everything that asks for one.
            self.ema.requires_grad_(False)
        self.stored: TeacherCache | None = None
        """The teacher's stored outputs, of which every batch then brings its rows."""
        self.top1 = MulticlassAccuracy(num_classes, average="micro")
        self.val_loss = MeanMetric()

    def configure_model(self) -> None:
        """Divide weights over the devices where that is asked for; Lightning calls this when they can talk."""
        if self._divided or self.trainer.world_size == 1:
            return
        self._divided = True
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            shard_trained(self.distiller, strategy.device_mesh["data_parallel"])
        if self.config.engine.shard_teacher:
            shard_teachers(self.distiller, strategy.root_device)

    @property
    def deployed(self) -> Backbone:
        """The student that is validated and kept: the average where there is one."""
        kept: nn.Module = self.distiller.student if self.ema is None else self.ema.module
        assert isinstance(kept, Backbone)
        return kept

    def _layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.config.engine.channels_last else images

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout, stochastic depth and mixup from the step, so that a resumed run draws the same."""
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        seed = mix_seed(self.config.seed, step, self.trainer.global_rank)
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> dict[str, Any]:
        """Run one batch; gives the loss, and the terms for the log."""
        images, targets, _, *rows = batch
        images = self._layout(images)
        replayed = self.stored.unpack(rows[0]) if self.stored is not None else None
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        step = self.distiller(images, targets, replayed)
        terms = {"loss": step.loss, **step.terms}
        return {"loss": step.loss, "terms": {name: value.detach() for name, value in terms.items()}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the average follow."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.distiller.student, step=self.global_step + 1)

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Look at one batch of the held-out split."""
        images, targets, _ = batch
        logits = self.deployed(self._layout(images)).logits.float()
        # Behind its own images a process may have one that another counts.
        sampler = self.trainer.datamodule.val_sampler  # type: ignore[attr-defined]
        own = sampler.own - batch_idx * sampler.batch_size
        if own <= 0:
            return
        logits, targets = logits[:own], targets[:own]
        self.top1.update(logits, targets)
        self.val_loss.update(F.cross_entropy(logits, targets, reduction="mean"), weight=len(targets))

    def on_validation_epoch_end(self) -> None:
        """Log the held-out accuracy, over all processes."""
        self.log_dict({"val/top1": 100 * self.top1.compute(), "val/loss": self.val_loss.compute()})
        self.top1.reset()
        self.val_loss.reset()

    def configure_optimizers(self) -> Any:
        """Make timm's optimiser and a schedule that moves every step."""
        config, epochs = self.config.optim, self.config.epochs
        optimizer = create_optimizer_v2(
            self.distiller,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **self._fused(),
        )
        if config.schedule == "none":
            return optimizer
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.schedule,
            num_epochs=epochs,
            warmup_epochs=min(config.warmup_epochs, epochs / 10),
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=self._updates_per_epoch(),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _fused(self) -> dict[str, bool]:
        """Ask for one kernel for the whole step where torch has one."""
        known = inspect.signature(get_optimizer_class(self.config.optim.name, bind_defaults=False)).parameters
        # Fused steps undo fp16's loss scale themselves, after the point where Lightning clips.
        clips_in_half = self.config.engine.precision == "16" and self.config.optim.clip_grad is not None
        return {"fused": True} if "fused" in known and not clips_in_half else {}

    def _updates_per_epoch(self) -> int:
        # Not trainer.estimated_stepping_batches: that makes the loader, before a resumed run knows where it stands.
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        return math.ceil(datamodule.batches_per_epoch(self.trainer.world_size) / self.config.engine.accumulate)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Move timm's schedule."""
        scheduler.step_update(num_updates=self.global_step)
