import random

import numpy as np
import pytest
import torch
from PIL import Image

from crossdistill import BackboneOutput, Batch, UserError, create_backbone
from crossdistill.config import AugmentConfig, LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.loaders import Views, ViewSampler, WithTeacher, make_loader
from crossdistill.data.picture import read_picture
from crossdistill.data.transforms import eval_transform, train_transform
from crossdistill.data.views import held_out_views, training_views
from tests.data.pictures import put

SPEC = create_backbone("test_resnet", 10, 32, in_chans=1).spec
STRONG = AugmentConfig(auto_augment="rand-m9-mstd0.5", erasing=0.5, hflip=0.5)


def views(workers, epoch=0, start=0, count=6, augment=STRONG, size=32):
    data = load_data("digits", LoaderConfig(max_train=count * 4))
    sampler = ViewSampler(len(data.train), 4, seed=3)
    loader = make_loader(Views(data.train, train_transform(augment, SPEC, size), 3), sampler, workers=workers)
    sampler.set_epoch(epoch)
    sampler.start_batch = start
    return [(batch.images.clone(), batch.targets.tolist(), batch.index.tolist()) for batch in loader]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x[0], y[0]) and x[1:] == y[1:] for x, y in zip(a, b, strict=True))


def test_views_do_not_depend_on_workers_or_on_other_draws():
    alone = views(0)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    assert same(alone, views(2))
    assert same(alone, views(0))


@pytest.mark.parametrize(
    ("crop", "mode", "scale", "side"),
    [("resized", "center", 0.25, 74), ("resized", "squash", 0.75, 64), ("padded", "center", 0.1, 64)],
)
def test_training_decodes_no_more_than_it_needs(tmp_path, crop, mode, scale, side):
    rows, columns = np.mgrid[:592, :740]
    pixels = np.dstack([rows * 0.4, columns * 0.3, 128 + 100 * np.sin(rows / 20)]).astype(np.uint8)
    paths = [put(pixels, tmp_path / name / f"{i}.jpg", quality=95) for name in "ab" for i in range(4)]
    augment = AugmentConfig(crop=crop, crop_mode=mode, scale=(scale, 1.0))
    data = load_data(str(tmp_path), LoaderConfig())
    spec = create_backbone("test_resnet", 2, 32).spec
    made = training_views(data.train, augment, spec, 32, seed=0, resident=False)
    assert made.at_least == side
    with Image.open(paths[0]) as image:
        image.draft(None, (side, side))
        assert image.size == (93, 74)
    if crop == "padded":  # the position of a resized crop is drawn in pixels of the decoded image
        whole = Views(data.train, made.transform, 0)
        assert (made[0, 0][0] - whole[0, 0][0]).abs().mean() < 0.05
    scored = held_out_views(data.val, augment, spec, 32, resident=False)
    assert torch.equal(scored[0, 0][0], scored.transform(read_picture(paths[0])))


def test_epochs_are_other_orders_and_other_views():
    first, second = views(0, epoch=0), views(0, epoch=1)
    order = [i for batch in first for i in batch[2]]
    assert sorted(order) == sorted(i for batch in second for i in batch[2])
    assert order != [i for batch in second for i in batch[2]]
    by_index = [{i: image for b in epoch for image, i in zip(b[0], b[2], strict=True)} for epoch in (first, second)]
    assert not any(torch.equal(by_index[0][i], by_index[1][i]) for i in by_index[0])


def test_a_resumed_epoch_goes_on_where_it_stopped():
    assert same(views(0, epoch=2)[4:], views(2, epoch=2, start=4))


def test_the_global_generators_are_left_alone():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    data = load_data("digits", LoaderConfig(max_train=8))
    Views(data.train, train_transform(STRONG, SPEC, 32), 0)[(0, 0)]
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_two_processes_share_an_epoch():
    for size in (103, 64, 5):
        whole = [list(ViewSampler(size, 4, seed=1, rank=rank, world=2)) for rank in range(2)]
        assert len(whole[0]) == len(whole[1]) == len(ViewSampler(size, 4, seed=1, rank=0, world=2))
        seen = [key for share in whole for key in share]
        assert len(seen) == len(set(seen))
        assert len(seen) == (size // 8 * 8 if size >= 8 else size // 2 * 2)
        # The joined batch of two processes is the batch that one process would have.
        alone = list(ViewSampler(size, 8, seed=1))
        assert size < 8 or set(alone[:8]) == set(whole[0][:4] + whole[1][:4])


def test_evaluation_sees_every_image_once():
    assert [index for index, _ in ViewSampler(11, 4)] == list(range(11))
    for size, world in ((11, 2), (12, 2), (5, 4), (1, 2), (1, 3), (3, 4), (7, 5)):
        samplers = [ViewSampler(size, 4, rank=rank, world=world) for rank in range(world)]
        shares = [list(sampler) for sampler in samplers]
        # All processes take as many steps; a repeated image belongs to another process.
        assert len({len(share) for share in shares}) == 1
        counted = [index for rank, share in enumerate(shares) for index, _ in share if index % world == rank]
        assert sorted(counted) == list(range(size))


def test_images_come_out_normalised_and_sized():
    data = load_data("digits", LoaderConfig())
    image = data.train.read(0)
    for transform in (
        train_transform(AugmentConfig(crop="none", hflip=0), SPEC, 32),
        eval_transform(AugmentConfig(), SPEC, 32),
    ):
        tensor = transform(image)
        assert tensor.shape == (1, 32, 32)
        assert tensor.min() >= -1.001
        assert tensor.max() <= 1.001
    assert train_transform(AugmentConfig(crop="resized"), SPEC, 96)(image).shape == (1, 96, 96)
    three = create_backbone("test_resnet", 10, 32).spec
    assert eval_transform(AugmentConfig(), three, 224)(image).shape == (3, 224, 224)


def test_a_batch_has_names_and_brings_what_the_teacher_said():
    data = load_data("digits", LoaderConfig(max_train=8))
    views = Views(data.train, train_transform(STRONG, SPEC, 32), 0)

    class Outputs:
        def read(self, keys):
            return BackboneOutput(None, torch.tensor(keys, dtype=torch.float16))

    (batch, _) = make_loader(WithTeacher(views, Outputs()), ViewSampler(8, 4, seed=1))
    assert isinstance(batch, Batch)
    assert batch.images.shape == (4, 1, 32, 32)
    assert batch.teacher.logits is None
    assert batch.teacher.embedding[:, 0].tolist() == batch.index.tolist()
    (plain, _) = make_loader(views, ViewSampler(8, 4, seed=1))
    assert plain.teacher is None
    assert torch.equal(plain.images, batch.images)


def test_a_policy_that_timm_does_not_know_is_named():
    with pytest.raises(UserError, match="augment: timm does not accept 'rnd-m9'"):
        train_transform(AugmentConfig(auto_augment="rnd-m9"), SPEC, 32)
