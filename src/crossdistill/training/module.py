"""The distiller as a LightningModule."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from timm.data import Mixup
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from crossdistill.backbones import Backbone
from crossdistill.config import AugmentConfig, EngineConfig, OptimConfig
from crossdistill.data.loaders import mix_seed
from crossdistill.distiller import Distiller
from crossdistill.tasks import Classification, NoLabels
from crossdistill.training.mixing import mix_both
from crossdistill.training.sharding import shard_teachers, shard_trained
from crossdistill.types import Batch


class DistillModule(L.LightningModule):
    """What Lightning trains: the distiller, its optimiser, and the average of the student where one is kept."""

    def __init__(
        self,
        distiller: Distiller,
        optim: OptimConfig,
        engine: EngineConfig,
        augment: AugmentConfig,
        *,
        epochs: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.distiller = distiller
        self.optim, self.engine, self.epochs, self.seed = optim, engine, epochs, seed
        self.leaves_out = False
        """Whether the next optimiser step is left out; `FiniteCheck` decides."""
        self._sharded = False
        num_classes = distiller.student.spec.num_classes
        self.mixup: Mixup | None = None
        if augment.mixes:
            smoothing = optim.label_smoothing
            self.mixup = Mixup(augment.mixup, augment.cutmix, label_smoothing=smoothing, num_classes=num_classes)
        # timm's average, not Lightning's: it has a warm-up, and copies the student alone.
        self.ema = ModelEmaV3(distiller.student, decay=optim.ema, use_warmup=True) if optim.ema is not None else None
        if self.ema is not None:
            # DDP waits for the gradient of every parameter that requires one.
            self.ema.requires_grad_(False)
        self.top1 = MulticlassAccuracy(max(num_classes, 2), average="micro")
        self.val_loss = MeanMetric()

    def configure_model(self) -> None:
        """Shard weights over the devices where that is set; Lightning calls this when they can communicate."""
        if self._sharded or self.trainer.world_size == 1:
            return
        self._sharded = True
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy):
            # They are the same in all processes; CRD's memory is too large to be sent in every step.
            parts = ("distiller.method.", "distiller.balance.")
            names = [name for name, _ in self.named_buffers() if name.startswith(parts)]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)
        if isinstance(strategy, ModelParallelStrategy):
            shard_trained(self.distiller, strategy.device_mesh["data_parallel"])
        if self.engine.shard_teacher:
            shard_teachers(self.distiller, strategy.root_device)

    @property
    def deployed(self) -> Backbone:
        """The student that is validated and kept: the average where there is one."""
        kept: nn.Module = self.distiller.student if self.ema is None else self.ema.module
        assert isinstance(kept, Backbone)
        return kept

    @property
    def deployed_prefix(self) -> str:
        """The prefix of the deployed student's plain network in a checkpoint."""
        return "distiller.student.model." if self.ema is None else "ema.module.model."

    def _in_layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.engine.channels_last is True else images

    def _for_teacher(self, batch: Batch) -> Tensor | None:
        return None if batch.teacher_images is None else self._in_layout(batch.teacher_images)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout, stochastic depth and mixup from the step, so that a resumed run draws the same numbers."""
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        seed_everything(mix_seed(self.seed, step, self.trainer.global_rank), verbose=False)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Run one batch; returns the loss, and the terms for the log."""
        images, targets = self._in_layout(batch.images), batch.targets
        seen = self._for_teacher(batch)
        if self.mixup is not None and seen is not None:
            images, seen, targets = mix_both(self.mixup, images, seen, targets)
        elif self.mixup is not None:
            images, targets = self.mixup(images, targets)
        step = self.distiller(images, targets, batch.teacher, batch.index, seen)
        terms = {"loss": step.loss, **step.terms}
        return {"loss": step.loss, "terms": {name: value.detach() for name, value in terms.items()}}

    def on_after_backward(self) -> None:
        """Add the measured gradients to the running mean, before any checkpoint is written."""
        if self.distiller.balance is not None:
            self.distiller.balance.update()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, and update the average; neither for a loss that is not finite, where such steps are left out."""
        if self.engine.on_nan == "skip" and optimizer_closure is not None:
            # The gradients are computed here: inside the optimiser they come too late to leave its step out.
            result = optimizer_closure()
            if self.leaves_out:
                return
            optimizer_closure = partial(_return, result)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update(self.distiller.student, step=self.global_step + 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score one batch of the held-out split."""
        images, targets = self._in_layout(batch.images), batch.targets
        # After its own images a process may have some that belong to another.
        own = batch.index % self.trainer.world_size == self.trainer.global_rank
        if not self.distiller.task.labelled:
            step = self.distiller(images, targets, batch.teacher, batch.index, self._for_teacher(batch))
            self.val_loss.update(step.loss, weight=own.sum())
            return
        logits = self.deployed(images).require_logits().float()
        if self.trainer.world_size > 1:
            logits, targets = logits[own], targets[own]
        if len(targets):
            self.top1.update(logits, targets)
            self.val_loss.update(F.cross_entropy(logits, targets, reduction="mean"), weight=len(targets))

    def on_validation_epoch_end(self) -> None:
        """Log the held-out accuracy, or the method's loss without labels, over all processes."""
        if self.distiller.task.labelled:
            self.log_dict({Classification.monitor: 100 * self.top1.compute(), "val/loss": self.val_loss.compute()})
            self.top1.reset()
        else:
            self.log(NoLabels.monitor, self.val_loss.compute())
        self.val_loss.reset()

    def configure_optimizers(self) -> Any:
        """Make timm's optimiser, and a schedule that changes with every step."""
        optim = self.optim
        optimizer = create_optimizer_v2(
            self.distiller,
            opt=optim.name,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            **self._fused(),
        )
        if optim.schedule == "none":
            return optimizer
        updates = self._updates_per_epoch()
        # timm makes at least one step of a warm-up, which may be all of a short run.
        warmup = optim.warmup_epochs if optim.warmup_epochs * updates >= 1 else 0.0
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=optim.schedule,
            num_epochs=self.epochs,
            decay_epochs=optim.decay_epochs if optim.schedule == "step" else None,
            warmup_epochs=warmup,
            warmup_lr=optim.warmup_lr,
            min_lr=optim.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _fused(self) -> dict[str, bool]:
        """Use one kernel for the whole step where torch has one."""
        known = inspect.signature(get_optimizer_class(self.optim.name, bind_defaults=False)).parameters
        # Fused steps undo fp16's loss scale themselves, after the point where Lightning clips.
        clips_in_half = self.engine.precision == "16" and self.optim.clip_grad is not None
        return {"fused": True} if "fused" in known and not clips_in_half else {}

    def _updates_per_epoch(self) -> int:
        # Not trainer.estimated_stepping_batches: that makes the loader before a resumed run has its position.
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        batches = datamodule.train_sampler(self.trainer.global_rank, self.trainer.world_size).batches
        return math.ceil(batches / self.engine.accumulate)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Update timm's schedule."""
        scheduler.step_update(num_updates=self.global_step)


def _return(result: Any) -> Any:
    return result
