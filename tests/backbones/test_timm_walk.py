"""Every family of timm through one door. Models are outlines on the meta device where they can be built so."""

import pytest
import timm
import torch

from crossdistill.backbones import create_backbone, probe_images
from crossdistill.backbones.build import outline

# name -> side in pixels; one or two small models of each family, at the smallest size it takes.
WALK = {
    "aimv2_large_patch14_224": 28, "beit_base_patch16_224": 32, "beitv2_base_patch16_224": 32, "botnet26t_256": 256,
    "cait_xxs24_224": 32, "caformer_s18": 64, "coat_lite_tiny": 64, "coatnet_pico_rw_224": 224, "convformer_s18": 64,
    "convit_tiny": 32, "convmixer_768_32": 56, "convnext_atto": 64, "convnextv2_atto": 64, "crossvit_9_240": 240,
    "cspresnet50": 64, "darknet53": 64, "davit_tiny": 224, "deit3_small_patch16_224": 32,
    "deit_tiny_distilled_patch16_224": 32, "deit_tiny_patch16_224": 32, "densenet121": 64, "dla34": 64, "dm_nfnet_f0": 64,
    "dpn48b": 64, "edgenext_xx_small": 64, "efficientformer_l1": 224, "efficientformerv2_s0": 224,
    "efficientnet_lite0": 64, "efficientvit_b0": 64, "efficientvit_m0": 224, "eva02_tiny_patch14_224": 28,
    "fasternet_t0": 64, "fastvit_t8": 64, "fbnetc_100": 64, "flexivit_small": 64, "focalnet_tiny_srf": 224, "gcvit_xxtiny": 224,
    "gernet_s": 64, "ghostnet_050": 64, "ghostnetv2_100": 64, "gmixer_12_224": 32, "gmlp_ti16_224": 32,
    "hardcorenas_a": 64, "hgnet_tiny": 64, "hgnetv2_b0": 64, "hiera_tiny_224": 224, "hrnet_w18_small": 64,
    "inception_next_atto": 64, "inception_resnet_v2": 96, "inception_v3": 96, "lcnet_050": 64, "levit_128s": 224,
    "mambaout_femto": 64, "maxvit_rmlp_pico_rw_256": 256, "mixer_s16_224": 32, "mixnet_s": 64, "mnasnet_050": 64,
    "mobilenetv2_050": 64, "mobilenetv3_small_050": 64, "mobilenetv4_conv_small_035": 64, "mobileone_s0": 64,
    "mobilevit_xxs": 64, "mobilevitv2_050": 64, "mvitv2_tiny": 224, "nasnetalarge": 96, "nest_tiny": 224,
    "nextvit_small": 64, "nf_regnet_b0": 64, "pit_ti_224": 224, "poolformer_s12": 64, "pvt_v2_b0": 64, "rdnet_tiny": 64,
    "regnetx_002": 64, "regnety_002": 64, "repghostnet_050": 64, "repvgg_a0": 64, "repvit_m0_9": 64, "res2net50_26w_4s": 64,
    "resmlp_12_224": 32, "resnest14d": 64, "resnet18": 64, "resnetv2_18": 64, "rexnet_100": 64, "samvit_base_patch16": 1024,
    "shvit_s1": 64, "skresnet18": 64, "spnasnet_100": 64, "starnet_s1": 64, "swiftformer_xs": 64,
    "swin_tiny_patch4_window7_224": 224, "swinv2_cr_tiny_224": 224, "swinv2_tiny_window8_256": 256, "test_convnext": 64,
    "tiny_vit_5m_224": 224, "tinynet_e": 64, "tnt_s_legacy_patch16_224": 32, "twins_svt_small": 224, "vgg11": 64,
    "visformer_tiny": 224, "vit_relpos_small_patch16_224": 32, "vit_tiny_patch16_224": 32, "vit_tiny_r_s16_p8_224": 64,
    "vitamin_small_224": 64, "volo_d1_224": 224, "vovnet39a": 64, "xception41": 64, "xcit_nano_12_p16_224": 32,
}  # fmt: skip


def test_the_walk_is_wide():
    modules = {timm.models._registry._model_to_module[name] for name in WALK}
    assert len(WALK) >= 100
    assert len(modules) >= 60


@pytest.mark.parametrize("name", WALK)
def test_every_family_gives_logits_embedding_and_four_stages(name):
    size = WALK[name]
    backbone = outline(name, 7, size)
    spec = backbone.spec
    assert spec.num_classes == 7
    backbone.eval()
    with torch.no_grad():
        out = backbone(probe_images(backbone, 3, size), stages=True)
    assert out.logits.shape == (2, 7)
    assert out.embedding.shape == (2, spec.embedding_dim)
    assert len(out.stages) == 4
    for stage, channels, stride in zip(out.stages, spec.stage_channels, spec.stage_strides, strict=True):
        assert stage.shape[:2] == (2, channels)
        assert stage.shape[2] == stage.shape[3]
        assert round(size / stage.shape[2]) == stride
    assert list(spec.stage_strides) == sorted(spec.stage_strides)
    assert len(spec.mean) == len(spec.std) == 3


# Real weights: the numbers, not only the shapes.
EXACT = {
    "test_vit": 32, "test_resnet": 32, "test_convnext": 32, "test_efficientnet": 32, "test_mambaout": 32,
    "test_byobnet": 32, "levit_128s": 224, "deit_tiny_distilled_patch16_224": 32, "mobilenetv4_conv_small_035": 32,
    "regnety_002": 32, "pit_ti_224": 224, "mobilevitv2_050": 64, "crossvit_9_240": 240, "xcit_nano_12_p16_224": 32,
    "resnetv2_18": 32, "poolformer_s12": 32,
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_logits_are_the_models_own(name):
    backbone = create_backbone(name, 5, EXACT[name]).eval()
    images = torch.randn(2, 3, EXACT[name], EXACT[name])
    with torch.no_grad():
        expected = backbone.model(images)
        plain, full = backbone(images), backbone(images, stages=True)
    torch.testing.assert_close(plain.logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(full.logits, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(full.embedding, plain.embedding, rtol=1e-5, atol=1e-6)


# Channels of the last block and of the map that is pooled.
HEADS = {
    "efficientnet_lite0": (320, 1280), "mobilenetv2_050": (160, 1280), "tinynet_e": (160, 1280), "rexnet_100": (185, 1280),
    "fbnetc_100": (352, 1984), "ghostnet_050": (80, 480), "fastvit_t8": (384, 768), "test_efficientnet": (64, 256),
}  # fmt: skip
# Their convolutions come after the pooling, or there are none.
NO_HEADS = {
    "mobilenetv3_small_050": 288, "mobilenetv4_conv_small_035": 336, "lcnet_050": 256, "hardcorenas_a": 960,
    "resnet18": 512, "mambaout_femto": 288, "convnext_atto": 320,
}  # fmt: skip


@pytest.mark.parametrize(("name", "channels"), HEADS.items())
def test_stage_4_is_the_map_after_a_convolutional_head(name, channels):
    backbone = create_backbone(name, 5, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = backbone(images, stages=True)
        final, blocks = backbone.model.forward_intermediates(images, output_fmt="NCHW")
    assert (blocks[-1].shape[1], backbone.spec.stage_channels[-1]) == channels
    assert out.stages[-1].shape[2:] == blocks[-1].shape[2:]
    assert torch.equal(out.stages[-1], final)
    if channels[1] == out.embedding.shape[1]:
        torch.testing.assert_close(out.stages[-1].mean(dim=(2, 3)), out.embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "channels"), NO_HEADS.items())
def test_stage_4_is_the_last_block_where_no_convolution_comes_before_the_pooling(name, channels):
    backbone = create_backbone(name, 5, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = backbone(images, stages=True)
        _, blocks = backbone.model.forward_intermediates(images, output_fmt="NCHW")
    assert backbone.spec.stage_channels[-1] == channels
    assert torch.equal(out.stages[-1], blocks[-1])


def test_the_head_runs_once_per_forward():
    # A batch norm in the head (mobilenetv4) would see every batch twice.
    backbone = create_backbone("mobilenetv4_conv_small_035", 5, 32).train()
    counted = backbone.model.norm_head.num_batches_tracked
    before = int(counted)
    backbone(torch.randn(4, 3, 32, 32), stages=True)
    assert int(counted) == before + 1


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(set(timm.list_modules()) - {"small_stem"}))  # ours
def test_all_modules_of_timm(module):
    name = min(timm.list_models(module=module), key=len)
    outline(name, 7, None)
