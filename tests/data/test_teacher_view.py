from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import Mixup

from crossdistill import UserError, create_backbone
from crossdistill.cache import fingerprint
from crossdistill.config import AugmentConfig, LoaderConfig, RunConfig
from crossdistill.config.resolve import resolve
from crossdistill.data.datasets import Arrays
from crossdistill.data.transforms import ScaledErasing, train_transform
from crossdistill.data.views import held_out_views, teacher_training_views, training_views
from crossdistill.teacher import Teacher, make_teacher
from crossdistill.training.mixing import mix_both
from crossdistill.types import BackboneSpec

SMALL, LARGE = 32, 96
SPEC = BackboneSpec("s", 2, 8, None, None, None, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
KEYS = [(0, 0), (1, 0), (2, 3), (3, 1)]


def smooth_images(count=4):
    """Images without detail, so that they look the same at two sizes."""
    noise = np.random.default_rng(0).integers(0, 255, (count, 6, 8, 3), dtype=np.uint8)
    large = [np.asarray(Image.fromarray(one).resize((260, 200), Image.Resampling.BICUBIC)) for one in noise]
    return Arrays(np.stack(large), [0, 1] * (count // 2))


def correlation(one, other):
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(crop="resized", color_jitter=0.4),
        AugmentConfig(crop="resized", crop_mode="squash"),
        AugmentConfig(crop="padded"),
        AugmentConfig(crop="none"),
        AugmentConfig(crop="resized", auto_augment="rand-m9-mstd0.5-inc1"),
    ],
    ids=["resized", "squashed", "padded", "none", "policy"],
)
def test_both_models_see_the_same_part_of_an_image(augment):
    images = smooth_images()
    common = dict(seed=5, resident=False)
    batch = training_views(images, augment, SPEC, SMALL, teacher_size=LARGE, **common).__getitems__(KEYS)
    assert batch.images.shape == (4, 3, SMALL, SMALL)
    assert batch.teacher_images.shape == (4, 3, LARGE, LARGE)
    for one, other in zip(batch.images, F.interpolate(batch.teacher_images, SMALL, mode="area"), strict=True):
        assert correlation(one, other) > 0.97
    # The student's own view is the one without a teacher, and the cache's is the teacher's.
    plain = training_views(images, augment, SPEC, SMALL, **common).__getitems__(KEYS)
    assert torch.equal(plain.images, batch.images)
    assert plain.teacher_images is None
    stored = teacher_training_views(images, augment, SPEC, SMALL, LARGE, seed=5).__getitems__(KEYS)
    assert torch.equal(stored.images, batch.teacher_images)


def test_erasing_hits_the_same_part():
    augment = AugmentConfig(crop="none", hflip=0.0, erasing=1.0)
    grey = Arrays(np.full((4, 200, 260, 3), 128, dtype=np.uint8), [0, 1, 0, 1])
    batch = training_views(grey, augment, SPEC, SMALL, seed=1, resident=False, teacher_size=LARGE).__getitems__(KEYS)
    level = (128 / 255 - 0.5) / 0.25
    small, large = ((one - level).abs().amax(dim=1) > 1e-3 for one in (batch.images, batch.teacher_images))
    assert small.any()
    assert torch.equal(small.repeat_interleave(3, 1).repeat_interleave(3, 2), large)
    transform = train_transform(augment, SPEC, LARGE, SMALL)
    assert any(isinstance(step, ScaledErasing) for step in transform.transforms[-1].transforms)


def test_held_out_images_have_no_randomness():
    batch = held_out_views(smooth_images(), AugmentConfig(), SPEC, SMALL, resident=False, teacher_size=LARGE)
    made = batch.__getitems__(KEYS)
    assert correlation(made.images, F.interpolate(made.teacher_images, SMALL, mode="area")) > 0.97


def test_a_teacher_does_not_resize_its_own_view():
    student = create_backbone("test_resnet", 3, img_size=SMALL)
    built = [create_backbone("test_resnet", 3, img_size=size) for size in (LARGE, 64)]
    images = torch.randn(2, 3, LARGE, LARGE)
    both = make_teacher(built, student)
    assert both.img_size == LARGE
    assert both.prepare(images) is images
    one = Teacher(built[0], student.spec)
    assert torch.equal(one.prepare(images), images)
    assert torch.equal(both(images).embedding[:, : one.spec.embedding_dim], one(images).embedding)


class Data:
    size = (300, 200)
    long = False
    channels = 3
    train = range(100)


def decided(config, size=(300, 200), **kwargs):
    data = Data()
    data.size = size
    return resolve(config, data, lambda name: 224, **kwargs)


def test_auto_is_own_where_teacher_and_images_are_larger():
    config = RunConfig(student="s", teacher="t", img_size=SMALL)
    assert decided(config).augment.teacher_view == "student"
    large = replace(config, model=replace(config.model, teacher_img_size=LARGE))
    made = decided(large)
    assert made.augment.teacher_view == "own"
    assert made.loader.resident is False
    assert decided(made).augment == made.augment
    assert decided(large, size=(28, 28)).augment.teacher_view == "student"
    assert decided(replace(large, augment=AugmentConfig(mixup=0.2))).augment.teacher_view == "own"
    on_device = replace(large, loader=LoaderConfig(resident=True), augment=AugmentConfig(crop="padded"))
    assert decided(on_device).augment.teacher_view == "student"
    with pytest.raises(UserError, match=r"loader\.resident"):
        decided(replace(large, loader=LoaderConfig(resident=True), augment=AugmentConfig(teacher_view="own")))
    assert decided(replace(large, teacher=None, augment=AugmentConfig(teacher_view="own"))).augment.teacher_view == (
        "student"
    )


def test_the_size_of_a_run_is_read_from_its_folder(tmp_path):
    config = RunConfig(student="s", teacher_checkpoint=str(tmp_path), img_size=SMALL)
    assert decided(config, run_size=lambda folder: LARGE).augment.teacher_view == "own"
    assert decided(config, run_size=lambda folder: SMALL).augment.teacher_view == "student"


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_both_models_see_the_same_mixture(mixup, cutmix):
    mix = Mixup(mixup, cutmix, num_classes=3)
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    for seed in range(4):
        images = torch.randn(6, 3, 8, 8)
        np.random.seed(seed)
        expected, soft = mix(images.clone(), targets)
        drawn = np.random.random()
        np.random.seed(seed)
        ours, seen, also = mix_both(mix, images.clone(), larger(images), targets)
        assert np.random.random() == drawn
        assert torch.equal(ours, expected)
        assert torch.equal(also, soft)
        torch.testing.assert_close(seen, larger(expected))


def larger(images):
    return F.interpolate(images, scale_factor=3, mode="nearest")


def test_one_cache_serves_students_of_all_sizes_where_the_views_do_not_depend_on_it():
    images = smooth_images()
    teacher = Teacher(create_backbone("test_resnet", 3, img_size=LARGE), SPEC)

    def record(size, **augment):
        config = AugmentConfig(crop_mode="center", crop_pct=0.875, teacher_view="own", **augment)
        views = teacher_training_views(images, config, SPEC, size, LARGE, seed=0)
        common = dict(augment=config, view_seed=0, precision="32", drawn_size=size)
        return fingerprint(teacher, images, views, SPEC, **common)

    assert record(32, crop="resized") == record(48, crop="resized")
    assert record(32, crop="padded") != record(48, crop="padded")
    assert record(32, crop="resized", erasing=0.5) != record(48, crop="resized", erasing=0.5)
