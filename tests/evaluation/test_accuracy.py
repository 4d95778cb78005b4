import numpy as np
import pytest
import torch

from crossdistill import BackboneOutput
from crossdistill.evaluation.accuracy import evaluate


def slow_scores(logits, targets, bins=15):
    """The scores by their definitions, in numpy."""
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)
    right = order[:, 0] == targets
    confidence = probabilities.max(1)
    ece = 0.0
    for low in np.linspace(0, 1, bins + 1)[:-1]:
        inside = (confidence > low) & (confidence <= low + 1 / bins)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    loss = -np.log(probabilities[np.arange(len(targets)), targets]).mean()
    top5 = np.mean([t in row[:5] for t, row in zip(targets, order, strict=True)])
    return {"top1": 100 * right.mean(), "top5": 100 * top5, "loss": loss, "ece": 100 * ece, "images": len(targets)}


@pytest.mark.parametrize("classes", [3, 10])
def test_scores_are_those_of_their_definitions(classes):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(101, classes, generator=generator)
    targets = torch.randint(classes, (101,), generator=generator)
    batches = list(zip(logits.split(32), targets.split(32), strict=True))
    found = evaluate(lambda x: BackboneOutput(x, x), batches, classes)
    expected = slow_scores(logits.double().numpy(), targets.numpy())
    if classes <= 5:
        del expected["top5"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
