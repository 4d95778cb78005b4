import pytest
import torch
import torch.nn.functional as F

from crossdistill import BackboneOutput
from crossdistill.tasks import Classification
from tests.processes import in_two_processes

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


def test_images_without_labels_are_left_out_of_the_mean():
    labels = torch.tensor([0, -1, 2, -1, -1, 4])
    task = Classification(label_smoothing=0.1, partly=True)
    known = labels >= 0
    expected = F.cross_entropy(LOGITS[known], labels[known], label_smoothing=0.1)
    torch.testing.assert_close(task.loss(OUTPUT, labels), expected)
    assert task.loss(OUTPUT, torch.full((6,), -1)).item() == 0


def _loss_of_half(rank):
    logits = LOGITS[rank * 3 : rank * 3 + 3].clone().requires_grad_()
    labels = torch.tensor([0, -1, 2, -1, -1, 4])[rank * 3 : rank * 3 + 3]
    loss = Classification(partly=True).loss(OUTPUT._replace(logits=logits), labels)
    loss.backward()
    return loss.item(), logits.grad


def test_two_processes_have_the_mean_over_the_labelled_images_of_both():
    logits = LOGITS.clone().requires_grad_()
    labels = torch.tensor([0, -1, 2, -1, -1, 4])
    loss = Classification(partly=True).loss(OUTPUT._replace(logits=logits), labels)
    loss.backward()
    found = in_two_processes(_loss_of_half)
    assert sum(value for value, _ in found) / 2 == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found]) / 2, logits.grad)
