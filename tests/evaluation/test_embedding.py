import numpy as np
import pytest
import torch

import crossdistill as cd
from crossdistill.evaluation.embedding import Embedded, embed, fit_probe, knn_accuracy


def clusters(count, classes, seed, spread=0.3):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(classes, 16))
    labels = random.integers(0, classes, count)
    return Embedded((centres[labels] + spread * random.normal(size=(count, 16))).astype(np.float32), labels)


def slow_knn(train, test):
    right = 0
    normed = train.features / np.linalg.norm(train.features, axis=1, keepdims=True)
    for feature, label in zip(test.features, test.labels, strict=True):
        similar = normed @ (feature / np.linalg.norm(feature))
        votes = np.zeros(train.labels.max() + 1)
        for i in np.argsort(-similar)[:20]:
            votes[train.labels[i]] += np.exp(similar[i] / 0.07)
        right += votes.argmax() == label
    return 100 * right / len(test.labels)


def test_nearest_neighbours_equal_the_slow_protocol():
    train, test = clusters(200, 5, 1, spread=1.5), clusters(100, 5, 2, spread=1.5)
    assert knn_accuracy(train, test) == pytest.approx(slow_knn(train, test), abs=1e-6)
    assert 30 < knn_accuracy(train, test) < 100


@pytest.mark.parametrize("classes", [2, 5])
def test_a_probe_separates_what_is_separable(classes):
    train, val, test = (clusters(200, classes, seed) for seed in (1, 2, 3))
    probe = fit_probe(train, val, classes)
    assert probe.weight.shape == (classes, 16)
    assert probe.accuracy(test) > 95
    scaled = Embedded(train.features * 100 + 7, train.labels)
    moved = Embedded(test.features * 100 + 7, test.labels)
    assert fit_probe(scaled, scaled, classes).accuracy(moved) > 95


def test_a_class_without_images_is_refused():
    train = clusters(100, 4, 1)
    with pytest.raises(cd.UserError, match="class 4 has no training images"):
        fit_probe(train, train, 5)


def test_embeddings_are_those_of_the_backbone():
    backbone = cd.create_backbone("test_vit", 0, 32, patch_size=8).eval()
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4), torch.arange(4)) for _ in range(2)]
    found = embed(backbone, batches)
    torch.testing.assert_close(torch.from_numpy(found.features[4:]), backbone(batches[1][0]).embedding.detach())
    assert found.labels.tolist() == [0, 1, 2, 3] * 2


def test_a_probe_without_held_out_images_is_refused():
    train = clusters(40, 4, 1)
    with pytest.raises(cd.UserError, match="no validation images with a label"):
        fit_probe(train, Embedded(train.features[:0], train.labels[:0]), 4)


def test_a_probe_that_teaches_is_sure_of_what_is_easy():
    """All regularisations are right on every image; the probabilities of the strongest are almost uniform."""
    train, val = (clusters(300, 3, seed, spread=0.1) for seed in (1, 2))
    by_accuracy, by_loss = (fit_probe(train, val, 3, choose_by=how) for how in ("accuracy", "loss"))
    assert by_accuracy.accuracy(val) == by_loss.accuracy(val) == 100
    assert by_accuracy.loss(val) > 0.9
    assert by_loss.loss(val) < 0.01
    logits = torch.from_numpy(val.features @ by_loss.weight.T + by_loss.bias)
    expected = torch.nn.functional.cross_entropy(logits, torch.from_numpy(val.labels))
    assert by_loss.loss(val) == pytest.approx(float(expected))
