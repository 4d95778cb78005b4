"""Foundation models of timm without a classifier. Large ones are outlines on the meta device."""

import pytest
import timm
import torch

from crossdistill import create_backbone, create_distiller
from crossdistill.backbones import probe_images
from crossdistill.backbones.build import classes_of_weights, outline

# name with the tag of its weights -> side in pixels, the smallest that it takes.
WALK = {
    "vit_small_patch14_dinov2.lvd142m": 28, "vit_base_patch14_dinov2.lvd142m": 28, "vit_large_patch14_dinov2.lvd142m": 28,
    "vit_small_patch14_reg4_dinov2.lvd142m": 28, "vit_base_patch14_reg4_dinov2.lvd142m": 28,
    "vit_giant_patch14_dinov2.lvd142m": 28, "vit_base_patch14_reg1_tipsv2.webli": 28,
    "vit_small_patch16_dinov3.lvd1689m": 32, "vit_small_plus_patch16_dinov3.lvd1689m": 32,
    "vit_base_patch16_dinov3.lvd1689m": 32, "vit_large_patch16_dinov3.lvd1689m": 32,
    "vit_base_patch16_dinov3_qkvb.lvd1689m": 32, "vit_7b_patch16_dinov3.lvd1689m": 32,
    "convnext_tiny.dinov3_lvd1689m": 64, "convnext_base.dinov3_lvd1689m": 64, "convnext_large.dinov3_lvd1689m": 64,
    "vit_small_patch16_224.dino": 32, "vit_base_patch8_224.dino": 16, "vit_base_patch16_224.mae": 32,
    "vit_base_patch16_224.orig_in21k": 32, "vit_base_patch16_siglip_224.webli": 32,
    "vit_base_patch16_siglip_224.v2_webli": 32, "vit_so400m_patch14_siglip_224.webli": 28,
    "vit_base_patch16_siglip_gap_224.webli": 32, "eva02_tiny_patch14_224.mim_in22k": 28,
    "eva02_small_patch14_224.mim_in22k": 28, "eva02_base_patch14_224.mim_in22k": 28,
    "eva02_large_patch14_224.mim_m38m": 28, "convnextv2_atto.fcmae": 64, "convnextv2_nano.fcmae": 64,
    "hiera_tiny_224.mae": 224, "hiera_base_224.mae": 224, "beit3_base_patch16_224.pt": 32,
    "aimv2_large_patch14_224.apple_pt": 28, "resnet50_clip_gap.openai": 64, "resnet50.bamboo": 64,
    "regnety_320.seer": 64, "samvit_base_patch16.sa1b": 1024, "sam2_hiera_tiny.fb_r896": 896,
    "naflexvit_base_patch16_siglip.v2_webli": 32,
}  # fmt: skip
# Image towers of CLIP, whose weights end in a projection instead of a classifier.
CLIP = {
    "vit_base_patch32_clip_224.openai": 64, "vit_base_patch16_clip_224.openai": 32,
    "vit_large_patch14_clip_224.openai": 28, "convnext_base.clip_laion2b": 64, "eva02_base_patch16_clip_224.merged2b": 32,
}  # fmt: skip

# Read in the default run; the others with the slow tests.
SAMPLE = (
    "vit_small_patch14_reg4_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m", "convnext_tiny.dinov3_lvd1689m",
    "vit_small_patch16_224.dino", "vit_base_patch16_siglip_224.webli", "eva02_tiny_patch14_224.mim_in22k",
    "convnextv2_atto.fcmae", "hiera_tiny_224.mae", "beit3_base_patch16_224.pt", "resnet50_clip_gap.openai",
    "vit_base_patch32_clip_224.openai", "naflexvit_base_patch16_siglip.v2_webli",
)  # fmt: skip


def marked(names, quick):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def test_the_walk_is_wide():
    assert len(WALK) + len(CLIP) >= 40


@pytest.mark.parametrize("name", WALK)
def test_the_weights_have_no_classifier(name):
    assert classes_of_weights(name) == 0


@pytest.mark.parametrize("name", marked([*WALK, *CLIP], SAMPLE))
def test_embedding_and_stages_of_models_without_a_classifier(name):
    size = {**WALK, **CLIP}[name]
    backbone = outline(name, 0, size).eval()
    spec = backbone.spec
    assert spec.num_classes == 0
    backbone.require_stages()
    with torch.no_grad():
        out = backbone(probe_images(backbone, 3, size), stages=True)
    assert out.logits is None
    assert out.embedding.shape == (2, spec.embedding_dim)
    for stage, channels, stride in zip(out.stages, spec.stage_channels, spec.stage_strides, strict=True):
        assert stage.shape[:2] == (2, channels)
        assert stage.shape[2] == stage.shape[3] == round(size / stride)


# Real weights of the small ones: the numbers, and a step of training.
EXACT = (
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_small_patch16_dinov3.lvd1689m",
    "eva02_tiny_patch14_224.mim_in22k",
)
MORE = (
    "vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_224.dino", "convnextv2_atto.fcmae", "resnet50_clip_gap.openai",
    "vit_base_patch16_siglip_224.webli", "vit_base_patch16_siglip_gap_224.webli", "vit_base_patch16_224.mae",
    "hiera_tiny_224.mae", "vit_base_patch16_clip_224.openai", "convnext_tiny.dinov3_lvd1689m", "beit3_base_patch16_224.pt",
)  # fmt: skip


@pytest.mark.parametrize("name", marked([*EXACT, *MORE], EXACT))
def test_the_embedding_is_the_models_own_output_and_teaches(name):
    size = {**WALK, **CLIP}[name]
    teacher = create_backbone(name, 0, size).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images).embedding, teacher.model(images), rtol=1e-5, atol=1e-6)
    expected = timm.get_pretrained_cfg(name)
    assert teacher.spec.mean == pytest.approx(expected.mean)
    student = create_backbone("test_resnet", 3, img_size=32)
    step = create_distiller("rsd", student=student, teacher=teacher)(
        torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    )
    step.loss.backward()
    assert torch.isfinite(step.loss)
