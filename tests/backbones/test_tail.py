from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._pytree import tree_flatten

from crossdistill import UserError, create_backbone
from crossdistill.backbones.build import outline
from crossdistill.backbones.cut import place_of
from crossdistill.backbones.family import is_convolutional
from crossdistill.backbones.tail import Tail
from tests.backbones.test_timm_walk import WALK

# One of each kind of body; small ones, at small sizes.
MODELS = [
    "beit_base_patch16_224", "caformer_s18", "coat_lite_tiny", "convformer_s18", "convit_tiny", "convmixer_768_32",
    "convnext_atto", "convnextv2_atto", "cspresnet50", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224",
    "deit_tiny_patch16_224", "densenet121", "dla34", "dpn48b", "edgenext_xx_small", "efficientnet_lite0",
    "efficientvit_b0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8", "fbnetc_100", "gernet_s", "ghostnet_050",
    "gmixer_12_224", "gmlp_ti16_224", "hgnetv2_b0", "inception_next_atto", "lcnet_050", "mambaout_femto", "mixer_s16_224",
    "mixnet_s", "mnasnet_050", "mobilenetv2_050", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "mobilevit_xxs",
    "mobilevitv2_050", "nf_regnet_b0", "poolformer_s12", "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "regnety_002",
    "repvit_m0_9", "resmlp_12_224", "resnet18", "resnetv2_18", "rexnet_100", "shvit_s1", "starnet_s1", "swiftformer_xs",
    "swin_tiny_patch4_window7_224", "test_convnext", "tinynet_e", "twins_svt_small", "vgg11", "vit_tiny_patch16_224",
    "vit_relpos_small_patch16_224", "vovnet39a", "xcit_nano_12_p16_224",
]  # fmt: skip


def own_prefix(backbone, images, stage, count):
    """The prefix tokens that stand beside a stage's patches in the model's own forward."""
    outputs = []
    handles = [m.register_forward_hook(lambda m, i, o: outputs.append(o)) for m in backbone.model.modules()]
    target = backbone(images, stages=True).stages[stage - 1]
    for handle in handles:
        handle.remove()
    whole, place = next((o, p) for o in outputs if (p := place_of(target, o)) is not None)
    return tree_flatten(whole)[0][place[0]][:, :count]


@pytest.mark.parametrize("name", MODELS)
def test_the_tail_on_the_models_own_stage_is_the_full_forward(name):
    size = WALK[name]
    backbone = create_backbone(name, 7, size).double().eval()
    tail = Tail(backbone, 3)
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        full = backbone(images, stages=True)
        prefix = own_prefix(backbone, images, 3, tail.prefix_tokens) if tail.prefix_tokens else None
        again = tail(full.stages[2], prefix)
    torch.testing.assert_close(again.logits, full.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again.embedding, full.embedding, rtol=1e-5, atol=1e-5)


def test_there_are_enough_models():
    assert len(set(MODELS)) >= 40


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:swin_t", "torchvision:efficientnet_b0"])
def test_torchvision_models_have_tails_too(name):
    backbone = create_backbone(name, 7, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    for stage in (1, 2, 3):
        with torch.no_grad():
            full = backbone(images, stages=True)
            again = Tail(backbone, stage)(full.stages[stage - 1])
        torch.testing.assert_close(again.logits, full.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.embedding, full.embedding, rtol=1e-4, atol=1e-5)


def test_weights_are_shared_and_statistics_do_not_move():
    backbone = create_backbone("test_resnet", 7, 32)
    tail = Tail(backbone, 3)
    before = {name: value.clone() for name, value in backbone.named_buffers() if "running" in name}
    features = torch.randn(4, *backbone(torch.randn(4, 3, 32, 32), stages=True).stages[2].shape[1:])
    before = {name: value.clone() for name, value in backbone.named_buffers() if "running" in name}
    backbone.requires_grad_(False)
    features.requires_grad_()
    out = tail(features)
    out.logits.sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(torch.equal(value, backbone.get_buffer(name)) for name, value in before.items())
    assert all(p.grad is None for p in backbone.parameters())
    with torch.no_grad():
        backbone.model.fc.weight.zero_()
        backbone.model.fc.bias.fill_(3.0)
    assert torch.equal(tail(features.detach()).logits, torch.full((4, 7), 3.0))


def test_the_front_is_not_run():
    backbone = create_backbone("resnet18", 7, 32).eval()
    tail = Tail(backbone, 3)
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, 32, 32), stages=True).stages[2]
        ran = []
        for name, module in backbone.named_modules():
            module.register_forward_hook(lambda m, i, o, name=name: ran.append(name))
        for name, module in tail.network.named_modules():
            module.register_forward_hook(lambda m, i, o, name=name: ran.append("tail " + name))
        tail(features)
    assert not [name for name in ran if not name.startswith("tail ")]
    assert "tail model.layer4.1.conv2" in ran
    assert not [name for name in ran if name.startswith(("tail model.layer3.", "tail model.layer1."))]


@pytest.mark.parametrize("name", ["hrnet_w18_small", "crossvit_9_240"])
def test_models_whose_stage_is_not_all_are_refused(name):
    with pytest.raises(UserError, match=r"tail .*run_tail\(stage, features\)"):
        Tail(create_backbone(name, 7, WALK[name]), 3)


class WithOwnTail(nn.Module):
    """A net that computes its stages without modules, and says itself how to go on."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, 2, 1) for i in range(4))
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        for conv in self.body:
            x = conv(x)
        return self.head(x.mean(dim=(2, 3)))

    def run_tail(self, stage, features):
        for conv in self.body[stage:]:
            features = conv(features)
        embedding = features.mean(dim=(2, 3))
        return self.head(embedding), embedding


def test_own_models_may_bring_their_tail():
    backbone = create_backbone("tests.backbones.test_tail:WithOwnTail", 7, 32)
    images = torch.randn(2, 3, 32, 32)
    full = backbone(images, stages=True)
    torch.testing.assert_close(Tail(backbone, 3)(full.stages[2]).logits, full.logits)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["resnet18", "convnext_atto", "efficientnet_lite0", "poolformer_s12", "vgg11", "densenet121"], True),
        (["resnest14d", "skresnet18", "mambaout_femto", "repvgg_a0", "test_convnext", "focalnet_tiny_srf"], True),
        (
            ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s16_224", "resmlp_12_224", "gmlp_ti16_224"],
            False,
        ),
        (["mobilevit_xxs", "mobilevitv2_050", "coatnet_pico_rw_224", "edgenext_xx_small", "efficientvit_b0"], False),
        (["caformer_s18", "levit_128s", "pvt_v2_b0", "xcit_nano_12_p16_224", "swiftformer_xs", "shvit_s1"], False),
    ],
)
def test_families_are_told_apart_without_names(names, expected):
    for name in names:
        assert is_convolutional(outline(name, 7, WALK[name])) is expected, name


@pytest.mark.parametrize(("name", "expected"), [("maxvit_t", False), ("swin_t", False), ("resnet18", True)])
def test_families_of_torchvision(name, expected):
    """Its MaxViT names projections and heads in its own way."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name)
    assert is_convolutional(SimpleNamespace(model=network)) is expected
