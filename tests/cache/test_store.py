import math
import pickle

import pytest
import torch

from crossdistill import UserError
from crossdistill.cache import CacheFormat
from crossdistill.types import BackboneOutput


def round_trip(fmt, output):
    import numpy as np

    rows = np.empty(len(output.embedding), dtype=fmt.row)
    fmt.pack(output, rows)
    return fmt.unpack(rows)


def some(classes=10, width=6, batch=5):
    return BackboneOutput(4 * torch.randn(batch, classes), torch.randn(batch, width))


def test_half_precision_keeps_eleven_bits_and_full_precision_all():
    output = some()
    kept = round_trip(CacheFormat(5, 6, 10), output)
    assert kept.logits.dtype == kept.embedding.dtype == torch.float16
    torch.testing.assert_close(kept.logits.float(), output.logits, rtol=2**-11, atol=1e-6)
    torch.testing.assert_close(kept.embedding.float(), output.embedding, rtol=2**-11, atol=1e-6)
    exact = round_trip(CacheFormat(5, 6, 10, dtype="float32"), output)
    assert torch.equal(exact.logits, output.logits)
    assert torch.equal(exact.embedding, output.embedding)


@pytest.mark.parametrize("classes", [50, 40_000])
def test_top_k_keeps_its_probabilities_and_the_mass_of_the_others(classes):
    output = some(classes)
    kept = round_trip(CacheFormat(5, 6, classes, top_k=7, dtype="float32"), output)
    before, after = output.logits.double().softmax(1), kept.logits.double().softmax(1)
    top = before.topk(7, dim=1)
    torch.testing.assert_close(after.gather(1, top.indices), top.values, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(after.sum(1), torch.ones(5).double())
    others = torch.ones_like(before, dtype=torch.bool).scatter(1, top.indices, False)
    share = (1 - top.values.sum(1, keepdim=True)) / (classes - 7)
    torch.testing.assert_close(after[others].view(5, -1), share.expand(-1, classes - 7), rtol=1e-4, atol=1e-9)


def test_a_row_is_as_large_as_promised():
    assert CacheFormat(50_000, 512, 100).bytes(4) == 50_000 * 4 * (512 + 100) * 2
    assert CacheFormat(10, 768, 21_843, top_k=16).row.itemsize == 768 * 2 + 16 * (2 + 2) + 4
    assert CacheFormat(10, 768, 40_000, top_k=16).row.itemsize == 768 * 2 + 16 * (2 + 4) + 4
    assert CacheFormat(10, 8, 10, stages=((3, (4, 2, 2)),)).row.itemsize == 2 * (8 + 10 + 16)


def test_stage_maps_come_back_in_their_place():
    stages = tuple(torch.randn(5, 4, 2, 2) for _ in range(4))
    output = some()
    kept = round_trip(
        CacheFormat(5, 6, 10, stages=((3, (4, 2, 2)),), dtype="float32"),
        BackboneOutput(output.logits, output.embedding, stages),
    )
    assert torch.equal(kept.stages[2], stages[2])
    assert [stage.numel() for stage in kept.stages] == [0, 0, 80, 0]


def test_numbers_that_half_precision_cannot_hold_are_refused():
    output = some()
    large = BackboneOutput(output.logits, output.embedding * 1e5)
    with pytest.raises(
        UserError, match=r"embedding reaches .*e\+05, which float16 cannot hold; use --cache-dtype float32"
    ):
        round_trip(CacheFormat(5, 6, 10), large)
    round_trip(CacheFormat(5, 6, 10, dtype="float32"), large)
    with pytest.raises(UserError, match="logits reaches nan, which float32 cannot hold: the teacher returns"):
        round_trip(CacheFormat(5, 6, 10, dtype="float32"), BackboneOutput(output.logits * math.nan, output.embedding))


def test_a_top_k_that_is_no_part_is_refused():
    for wrong in (0, 10, 11):
        with pytest.raises(UserError, match=f"cache_top_k is {wrong}; of 10 classes keep 1 to 9"):
            CacheFormat(5, 6, 10, top_k=wrong)


def test_a_reader_is_cheap_to_hand_over(written):
    written.read([(0, 0), (7, 1)])
    assert len(pickle.dumps(written)) < 10_000
    again = pickle.loads(pickle.dumps(written))
    assert torch.equal(again.read([(7, 1)]).logits, written.read([(7, 1)]).logits)
