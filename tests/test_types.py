import pytest
import torch

import crossdistill as cd


def test_an_output_is_mapped_and_moved():
    output = cd.BackboneOutput(None, torch.ones(2, 3), (torch.ones(2, 1, 1, 1),))
    doubled = output.map(lambda tensor: 2 * tensor.double())
    assert doubled.logits is None
    assert doubled.embedding.dtype == torch.float64
    assert doubled.stages[0].sum() == 4
    with pytest.raises(ValueError, match="has no logits"):
        output.require_logits()
    with pytest.raises(ValueError, match="stages=True"):
        cd.BackboneOutput(None, torch.ones(1, 1)).require_stages()


def test_lightning_moves_a_batch_by_name():
    from lightning.fabric.utilities import move_data_to_device

    teacher = cd.BackboneOutput(torch.ones(2, 5), torch.ones(2, 3))
    batch = cd.Batch(torch.ones(2, 3, 4, 4), torch.zeros(2), torch.arange(2), teacher)
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, cd.Batch)
    assert moved.images.is_meta
    assert moved.teacher.logits.is_meta
    assert moved.teacher.stages is None


def test_what_nothing_reads_is_false():
    assert not cd.Reads()
    assert cd.Reads(stages=(3,))
    assert not cd.Needs().teacher
