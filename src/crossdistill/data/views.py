"""The data sets that a run trains on and is validated on."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from crossdistill.config.data import AugmentConfig, LoaderConfig
from crossdistill.data.datasets import Images, Part
from crossdistill.data.loaders import Views, evaluation_loader
from crossdistill.data.resident import ResidentViews
from crossdistill.data.transforms import eval_transform, resize_transform, sufficient_side, train_transform
from crossdistill.types import BackboneSpec

_SAMPLE = 512


def training_views(
    images: Images,
    augment: AugmentConfig,
    student: BackboneSpec,
    img_size: int,
    *,
    seed: int,
    resident: bool,
    device: torch.device | str = "cpu",
) -> Dataset[Any]:
    """Make the augmented views of the training images, normalised for the student. Raises UserError."""
    if not resident:
        transform = train_transform(augment, student, img_size)
        return Views(images, transform, seed, at_least=sufficient_side(augment, img_size))
    plain = resize_transform(augment, student, img_size)
    return ResidentViews(images, plain, student, augment, seed=seed, device=device)


def held_out_views(
    images: Images,
    augment: AugmentConfig,
    student: BackboneSpec,
    img_size: int,
    *,
    resident: bool,
    device: torch.device | str = "cpu",
) -> Dataset[Any]:
    """Make the one view of each held-out image, normalised for the student."""
    transform = eval_transform(augment, student, img_size)
    if not resident:
        return Views(images, transform)
    return ResidentViews(images, transform, student, device=device)


def sample_loader(
    images: Images, num_classes: int, augment: AugmentConfig, student: BackboneSpec, img_size: int, loader: LoaderConfig
) -> DataLoader[Any]:
    """Make a loader of an even sample of images: 512, or five for each class where that is more."""
    count = min(len(images), max(_SAMPLE, 5 * num_classes))
    chosen = torch.linspace(0, len(images) - 1, count).round().long().tolist()
    transform = eval_transform(augment, student, img_size)
    return evaluation_loader(Part(images, chosen), transform, loader.batch_size, workers=loader.workers)
