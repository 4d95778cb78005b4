import unicodedata
from dataclasses import replace

import pytest
import torch

from crossdistill import UserError, create_backbone
from crossdistill.backbones.classes import reorder_classes
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.classes import has_classes_of, match_classes
from tests.data.pictures import fill

MODELS = {
    "test_resnet": {},
    "test_vit": {},
    "test_byobnet": {},
    "test_efficientnet": {},
    "deit_tiny_distilled_patch16_224": {"depth": 4, "embed_dim": 64, "num_heads": 2},
    "torchvision:squeezenet1_1": {},
    "torchvision:mobilenet_v3_small": {},
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_put_into_another_order(name):
    backbone = create_backbone(name, 10, 64, **MODELS[name]).eval()
    order = torch.randperm(10).tolist()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        before = backbone(images).logits
        reorder_classes(backbone, order)
        torch.testing.assert_close(backbone(images).logits, before[:, order], rtol=1e-3, atol=1e-5)


def test_a_width_that_equals_the_number_of_classes():
    """Layers of the same width inside the network stay as they are."""
    backbone = create_backbone("test_vit", 64, 32).eval()
    order = torch.randperm(64).tolist()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        before = backbone(images).logits
        reorder_classes(backbone, order)
        torch.testing.assert_close(backbone(images).logits, before[:, order], rtol=1e-3, atol=1e-5)


def test_a_network_whose_classifier_cannot_be_found_is_refused():
    backbone = create_backbone("tests.data.test_classes:Twisted", 10, 32).eval()
    before = [value.clone() for value in backbone.state_dict().values()]
    with pytest.raises(UserError, match="classifier was not found"):
        reorder_classes(backbone, list(reversed(range(10))))
    assert all(map(torch.equal, before, backbone.state_dict().values()))


class Twisted(torch.nn.Module):
    """Adds different numbers to the logits, so that the order of its last layer's rows is not all."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(x.mean(dim=(2, 3))) + torch.arange(10.0)


def test_names_are_matched():
    data = replace(load_data("digits", LoaderConfig()), class_names=tuple("abcdefghij"))
    backbone = create_backbone("test_resnet", 10, 32, in_chans=1).eval()
    match_classes(backbone, "x", data)
    assert has_classes_of(data, [backbone])
    backbone.class_names = tuple("jihgfedcba")
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        before = backbone(images).logits
        state = torch.get_rng_state()
        match_classes(backbone, "x", data)
        # What is built next has the initial weights that it has without.
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(backbone(images).logits, before.flip(1), rtol=1e-3, atol=1e-5)
    assert backbone.class_names == data.class_names
    backbone.class_names = tuple("abcdefghiX")
    assert not has_classes_of(data, [backbone])
    with pytest.raises(UserError, match="'run' knows other classes than 'digits': only the model has 'X'; only"):
        match_classes(backbone, "run", data)


def test_names_in_another_form_of_unicode_are_the_same_names(tmp_path):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    data = load_data(str(fill(tmp_path / "data", (apart, "bee"))), LoaderConfig())
    backbone = create_backbone("test_resnet", 2, 32)
    backbone.class_names = (composed, "bee")
    weight = backbone.model.fc.weight.detach().clone()
    match_classes(backbone, "a run", data)
    assert backbone.class_names == data.class_names == ("bee", apart)
    assert torch.equal(backbone.model.fc.weight, weight.flip(0))
    both = load_data(str(fill(tmp_path / "both", (apart, composed))), LoaderConfig())
    assert "one name in different forms of Unicode" in " ".join(both.about)
    with pytest.raises(UserError, match="knows other classes"):
        match_classes(create_named(composed, "bee"), "a run", both)


def create_named(*names):
    backbone = create_backbone("test_resnet", len(names), 32)
    backbone.class_names = names
    return backbone
