import pytest

from crossdistill.backbones.stages import choose_stages, proportional_cuts


@pytest.mark.parametrize(
    ("depth", "cuts"),
    [
        (12, (1, 3, 9, 11)),
        (24, (3, 7, 19, 23)),
        (6, (0, 1, 4, 5)),
        (4, (0, 1, 2, 3)),
        (2, (0, 0, 0, 1)),
        (5, (0, 1, 3, 4)),
    ],
)
def test_plain_models_are_cut_in_proportion(depth, cuts):
    assert proportional_cuts(depth) == cuts


def test_cuts_rise_and_end_at_the_last_block():
    for depth in range(4, 200):
        cuts = proportional_cuts(depth)
        assert list(cuts) == sorted(set(cuts))
        assert cuts[-1] == depth - 1


def test_no_block_is_an_error():
    with pytest.raises(ValueError, match="no stages"):
        proportional_cuts(0)


@pytest.mark.parametrize(
    ("strides", "chosen"),
    [
        ([4, 8, 16, 32], (0, 1, 2, 3)),
        ([2, 4, 8, 16, 32], (1, 2, 3, 4)),
        ([2, 4, 4, 8, 16, 16, 32], (2, 3, 5, 6)),
        ([16] * 12, (1, 3, 9, 11)),
        ([16, 32, 64], (0, 0, 1, 2)),
        ([8, 16, 16, 16, 32], (0, 2, 3, 4)),
        ([8, 8, 8, 16, 32], (1, 2, 3, 4)),
    ],
)
def test_hierarchies_give_the_last_tap_of_each_stride(strides, chosen):
    assert choose_stages(strides) == chosen


def test_always_four_rising_taps_that_end_with_the_last():
    for strides in ([4, 8], [4, 4, 8], [4, 4, 4, 8, 8], [8, 16, 32, 32, 32, 32], [7]):
        chosen = choose_stages(strides)
        assert len(chosen) == 4
        assert list(chosen) == sorted(chosen)
        assert chosen[-1] == len(strides) - 1
