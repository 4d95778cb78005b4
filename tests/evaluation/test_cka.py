import pytest
import torch

from crossdistill.evaluation.cka import CKA, unbiased_hsic


def plain_hsic(k, l):  # noqa: E741
    """The sum over ordered sets of four different images, by loops (Song et al. 2012, equation 4 expanded)."""
    n = len(k)
    total = 0.0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def features(seed, n=7, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_estimate_is_the_mean_over_sets_of_four_images():
    x, y = features(0), features(1) + features(0)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert float(unbiased_hsic(k, l)) == pytest.approx(plain_hsic(k, l))
    with pytest.raises(ValueError, match="at least 4"):
        unbiased_hsic(k[:3, :3], l[:3, :3])


def found(*pairs):
    cka = CKA()
    for first, second in pairs:
        cka.add(first, second)
    return cka.compute()


def test_equal_features_are_aligned_and_independent_ones_are_not():
    x = features(0, 64, 16)
    rotation = torch.linalg.qr(features(2, 16, 16))[0]
    same = found(([x], [3 * x @ rotation + 5]))
    assert float(same) == pytest.approx(1)
    assert abs(float(found(([features(3, 256, 8)], [features(4, 256, 8)])))) < 0.1
    # Maps are flattened, whatever their shape.
    assert float(found(([x.view(64, 4, 2, 2)], [x]))) == pytest.approx(1)


def test_batches_estimate_what_all_images_have():
    x, y = features(0, 256, 8), features(0, 256, 8) @ features(5, 8, 12) + features(6, 256, 12)
    whole = found(([x], [y]))
    parts = found(*[([x[i : i + 32]], [y[i : i + 32]]) for i in range(0, 256, 32)])
    assert float(parts) == pytest.approx(float(whole), abs=0.03)


def test_every_pair_of_layers_has_its_place():
    x, y, z = (features(seed, 64, 6) for seed in range(3))
    matrix = found(([x, y], [y, z, x]))
    assert matrix.shape == (2, 3)
    assert float(matrix[0, 2]) == pytest.approx(1)
    assert float(matrix[1, 0]) == pytest.approx(1)
    assert matrix[0, :2].abs().max() < 0.5
    constant = found(([torch.ones(8, 3)], [features(0, 8, 3)]))
    assert torch.isnan(constant).all() or constant.abs().max() == 0
    # One image differs: the unbiased estimate for the layer itself is below zero.
    for seed in range(20):
        nearly = torch.ones(8, 3)
        nearly[seed % 8] += 1
        assert not torch.isinf(found(([nearly], [features(seed, 8, 3)]))).any()
    with pytest.raises(ValueError, match="no batch"):
        CKA().compute()
