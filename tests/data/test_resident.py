import torch
import torch.nn.functional as F

from crossdistill import create_backbone
from crossdistill.config import AugmentConfig, LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.loaders import ViewSampler, make_loader
from crossdistill.data.resident import ResidentViews, uniform
from crossdistill.data.transforms import train_transform

SPEC = create_backbone("test_resnet", 10, 32, in_chans=1).spec
PLAIN = AugmentConfig(crop="none", hflip=0.0)
FLIPS = AugmentConfig(crop="padded", hflip=0.5)
DATA = load_data("digits", LoaderConfig(max_train=40))


def resident(augment=FLIPS, seed=3, data=DATA):
    return ResidentViews(data.train, train_transform(PLAIN, SPEC, 32), SPEC, augment, seed=seed)


def splitmix64(state):
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_the_numbers_are_those_of_splitmix64_and_look_random():
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # the generator's published first number
    indices, views = torch.tensor([0, 1, 49_999, 2**40]), torch.tensor([0, 7, 299, 1])
    ours = uniform(2**31 + 5, indices, views, 3)
    for row, (index, view) in enumerate(zip(indices.tolist(), views.tolist(), strict=True)):
        state = splitmix64(splitmix64(splitmix64(2**31 + 5) ^ index) ^ view)
        expected = [(splitmix64(state + slot) & 0xFFFFFF) / 2**24 for slot in range(3)]
        assert ours[row].tolist() == expected
    many = uniform(0, torch.arange(20_000), torch.zeros(20_000, dtype=torch.long), 3)
    assert many.min() >= 0
    assert many.max() < 1
    torch.testing.assert_close(many.mean(0), torch.full((3,), 0.5), atol=0.01, rtol=0)
    correlation = torch.corrcoef(many.T)
    assert (correlation - torch.eye(3)).abs().max() < 0.03
    neighbours = torch.corrcoef(torch.stack([many[:-1, 0], many[1:, 0]]))[0, 1]
    assert abs(neighbours) < 0.03


def test_without_augmentation_it_is_the_transform():
    views = resident(None)
    images, labels, indices, *_ = views.__getitems__([(i, 0) for i in (3, 0, 39)])
    expected = torch.stack([train_transform(PLAIN, SPEC, 32)(DATA.train.read(i)) for i in (3, 0, 39)])
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert labels.tolist() == [DATA.train.labels[i] for i in (3, 0, 39)]
    assert indices.tolist() == [3, 0, 39]
    assert views.pixels.dtype == torch.uint8


def test_views_are_padded_crops_and_flips_of_their_own_numbers():
    whole = resident(None)
    keys = [(index, view) for index in range(12) for view in range(4)]
    images = resident().__getitems__(keys)[0]
    black = (0 - SPEC.mean[0]) / SPEC.std[0]
    seen = set()
    for image, (index, view) in zip(images, keys, strict=True):
        top, left, flip = uniform(3, torch.tensor([index]), torch.tensor([view]), 3)[0].tolist()
        top, left, flip = int(top * 9), int(left * 9), flip < 0.5
        seen.add((top, left, flip))
        padded = F.pad(whole[index, 0][0], (4, 4, 4, 4), value=black)
        expected = padded[:, top : top + 32, left : left + 32]
        torch.testing.assert_close(image, expected.flip(2) if flip else expected, atol=1e-6, rtol=0)
    assert len(seen) > 30
    assert {flip for *_, flip in seen} == {True, False}


def test_a_view_is_the_same_in_any_batch_and_another_for_another_seed():
    views = resident()
    together = views.__getitems__([(i, 2) for i in range(8)])[0]
    assert all(torch.equal(views[i, 2][0], together[i]) for i in range(8))
    assert not torch.equal(together, resident(seed=4).__getitems__([(i, 2) for i in range(8)])[0])
    assert not torch.equal(together, views.__getitems__([(i, 3) for i in range(8)])[0])


def test_a_loader_gives_its_batches_whole():
    loader = make_loader(resident(), ViewSampler(40, 16, seed=1))
    batches = list(loader)
    assert [len(images) for images, *_ in batches] == [16, 16]
    assert batches[0][0].shape == (16, 1, 32, 32)


def test_a_limited_number_of_views_takes_turns():
    sampler = ViewSampler(8, 4, seed=1, views=3)
    seen = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        seen.append({view for _, view in sampler})
    assert seen == [{0}, {1}, {2}, {0}, {1}]
