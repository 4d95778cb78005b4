"""The data sets that a run trains on and is validated on."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from crossdistill.config.data import AugmentConfig, LoaderConfig
from crossdistill.data.datasets import Images, Part
from crossdistill.data.loaders import Views, evaluation_loader
from crossdistill.data.resident import ResidentViews
from crossdistill.data.transforms import eval_transform, resize_transform, sufficient_side, train_transform
from crossdistill.image_size import ImageSize, sides_of
from crossdistill.types import BackboneSpec

_SAMPLE = 512


def training_views(
    images: Images,
    augment: AugmentConfig,
    student: BackboneSpec,
    img_size: ImageSize,
    *,
    seed: int,
    resident: bool,
    device: torch.device | str = "cpu",
    teacher_size: ImageSize | None = None,
    for_teacher: bool = True,
) -> Dataset[Any]:
    """Make the augmented views of the training images, normalised for the student. Raises UserError.

    `teacher_size` is the input size of a teacher that sees the same views at its own; with `for_teacher` they are
    rendered for it as well.
    """
    if not resident:
        transform = train_transform(augment, student, img_size)
        teacher = None
        if teacher_size is not None and for_teacher:
            teacher = train_transform(augment, student, teacher_size, img_size)
        side = _decoded_side(augment, img_size, teacher_size)
        return Views(images, transform, seed, at_least=side, teacher=teacher)
    plain = resize_transform(augment, student, img_size)
    return ResidentViews(images, plain, student, augment, seed=seed, device=device)


def teacher_training_views(
    images: Images,
    augment: AugmentConfig,
    student: BackboneSpec,
    img_size: ImageSize,
    teacher_size: ImageSize,
    *,
    seed: int,
) -> Views:
    """Make the views of `training_views` at the teacher's size alone."""
    transform = train_transform(augment, student, teacher_size, img_size)
    return Views(images, transform, seed, at_least=_decoded_side(augment, img_size, teacher_size))


def _decoded_side(augment: AugmentConfig, img_size: ImageSize, teacher_size: ImageSize | None) -> int:
    """Return the side in pixels that an image must have after decoding, for both models."""
    sizes = [img_size] if teacher_size is None else [img_size, teacher_size]
    return sufficient_side(augment, max(max(sides_of(size)) for size in sizes))


def held_out_views(
    images: Images,
    augment: AugmentConfig,
    student: BackboneSpec,
    img_size: ImageSize,
    *,
    resident: bool,
    device: torch.device | str = "cpu",
    teacher_size: ImageSize | None = None,
    for_teacher: bool = True,
) -> Dataset[Any]:
    """Make the one view of each held-out image, normalised for the student, and for a teacher as in training."""
    transform = eval_transform(augment, student, img_size)
    if not resident:
        teacher = None
        if teacher_size is not None and for_teacher:
            teacher = eval_transform(augment.decided(img_size), student, teacher_size)
        return Views(images, transform, teacher=teacher)
    return ResidentViews(images, transform, student, device=device)


def sample_loader(
    images: Images,
    num_classes: int,
    augment: AugmentConfig,
    student: BackboneSpec,
    img_size: ImageSize,
    loader: LoaderConfig,
) -> DataLoader[Any]:
    """Make a loader of an even sample of images: 512, or five for each class where that is more."""
    count = min(len(images), max(_SAMPLE, 5 * num_classes))
    chosen = torch.linspace(0, len(images) - 1, count).round().long().tolist()
    transform = eval_transform(augment, student, img_size)
    return evaluation_loader(Part(images, chosen), transform, loader.batch_size, workers=loader.workers)
