import pytest
import torch
import torch.nn.functional as F

from crossdistill import BackboneOutput
from crossdistill.tasks import Classification

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
OUTPUT = BackboneOutput(LOGITS, torch.zeros(6, 3))


def test_class_numbers_are_smoothed_and_probabilities_are_not():
    labels = torch.arange(6) % 5
    task = Classification(label_smoothing=0.1)
    torch.testing.assert_close(task.loss(OUTPUT, labels), F.cross_entropy(LOGITS, labels, label_smoothing=0.1))
    soft = torch.rand(6, 5).softmax(dim=1)
    torch.testing.assert_close(task.loss(OUTPUT, soft), F.cross_entropy(LOGITS, soft))


def test_half_precision_logits_are_cast():
    half = OUTPUT._replace(logits=LOGITS.half())
    assert Classification().loss(half, torch.arange(6) % 5).dtype == torch.float32


def test_a_student_without_a_classifier_has_no_loss():
    with pytest.raises(ValueError, match="has no logits"):
        Classification().loss(OUTPUT._replace(logits=None), torch.zeros(6, dtype=torch.long))
