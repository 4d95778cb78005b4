import copy

import pytest
import timm
import torch
from torch import nn

from crossdistill import UserError, create_backbone

TINY_MLP = ("timm.models.mlp_mixer:MlpMixer", {"patch_size": 8, "embed_dim": 16, "num_blocks": 6})


class PlainNet(nn.Module):
    """Four resolutions, a plain head; nothing of timm's."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 3 * width, 4 * width]
        for i in range(4):
            block = nn.Sequential(
                nn.Conv2d(widths[i], widths[i + 1], 3, 2, 1), nn.BatchNorm2d(widths[i + 1]), nn.ReLU()
            )
            setattr(self, f"block{i}", block)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x):
        for i in range(4):
            x = getattr(self, f"block{i}")(x)
        return self.head(x.mean(dim=(2, 3)))


class TwoBlocks(nn.Module):
    """Too shallow for four stages."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.head(self.b(self.a(x)).mean(dim=(2, 3)))


HERE = "tests.backbones.test_build"


MODEL = nn.Linear(2, 2)


def no_classes(num_classes):
    return {}[num_classes]


class Broken(nn.Module):
    def forward(self, images):
        return {}["logits"]


class NoWidth(nn.Module):
    def forward(self, images):
        return images.new_zeros(len(images), 0)


@pytest.mark.parametrize(
    ("name", "size", "channels", "strides", "embedding"),
    [
        ("torchvision:resnet18", 64, (64, 128, 256, 512), (4, 8, 16, 32), 512),
        ("torchvision:mobilenet_v3_small", 64, None, (4, 8, 16, 32), 1024),
        ("torchvision:swin_t", 64, (96, 192, 384, 768), (4, 8, 16, 32), 768),
        ("torchvision:convnext_tiny", 64, (96, 192, 384, 768), (4, 8, 16, 32), 768),
        ("torchvision:densenet121", 64, None, (4, 8, 16, 32), 1024),
        ("torchvision:squeezenet1_1", 64, None, None, 512),
        ("torchvision:regnet_y_400mf", 64, None, (4, 8, 16, 32), 440),
        (f"{HERE}:PlainNet", 32, (8, 16, 24, 32), (2, 4, 8, 16), 32),
    ],
)
def test_models_that_are_not_timms(name, size, channels, strides, embedding):
    backbone = create_backbone(name, 5, size).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        out = backbone(images, stages=True)
        torch.testing.assert_close(out.logits, backbone.model(images))
        assert backbone(images).stages is None
    assert out.embedding.shape == (2, embedding)
    assert backbone.spec.embedding_dim == embedding
    assert len(out.stages) == 4
    assert channels is None or backbone.spec.stage_channels == channels
    assert strides is None or backbone.spec.stage_strides == strides
    assert tuple(stage.shape[1] for stage in out.stages) == backbone.spec.stage_channels


def test_a_plain_transformer_of_torchvision_is_cut_and_folded():
    backbone = create_backbone(
        "torchvision.models.vision_transformer:VisionTransformer",
        5,
        32,
        image_size=32,
        patch_size=16,
        num_layers=6,
        hidden_dim=48,
        mlp_dim=96,
        num_heads=4,
    )
    assert backbone.spec.stage_channels == (48,) * 4
    assert backbone.spec.stage_strides == (16,) * 4
    assert [name.rpartition("_")[2] for name in backbone._stage_names] == ["0", "1", "4", "5"]


def test_stages_can_be_named():
    backbone = create_backbone(f"{HERE}:PlainNet", 5, 32, stages=["block0.0", "block1", "block2.1", "block3"])
    assert backbone.spec.stage_channels == (8, 16, 24, 32)
    timms = create_backbone("test_resnet", 5, 32, stages=["layer1", "layer2", "layer3", "layer4"])
    images = torch.randn(2, 3, 32, 32)
    own = create_backbone("test_resnet", 5, 32).eval()
    own.model.load_state_dict(timms.model.state_dict())
    for ours, theirs in zip(timms.eval()(images, stages=True).stages, own(images, stages=True).stages, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_model_without_stages_works_until_they_are_asked_for():
    backbone = create_backbone(f"{HERE}:TwoBlocks", 5, 32)
    assert backbone(torch.randn(2, 3, 32, 32)).embedding.shape == (2, 4)
    with pytest.raises(UserError, match=r"neither four resolutions nor four equal blocks.*stages=\["):
        backbone(torch.randn(2, 3, 32, 32), stages=True)


def test_hooks_follow_a_copy():
    backbone = create_backbone(f"{HERE}:PlainNet", 5, 32).eval()
    twin = copy.deepcopy(backbone)
    with torch.no_grad():
        for p in backbone.parameters():
            p.zero_()
        assert twin(torch.randn(2, 3, 32, 32), stages=True).embedding.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnet19x", {}, "unknown model 'resnet19x'; did you mean 'resnet"),
        ("torchvision:resnet19", {}, "did you mean 'resnet18'"),
        ("no_such.module:thing", {}, "cannot be imported"),
        (f"{HERE}:PlainNet", {"stages": ["block0", "block1"]}, "names 2 modules; it must name 4"),
        (f"{HERE}:PlainNet", {"stages": ["block0", "block1", "block2", "block9"]}, "did you mean 'block"),
        ("resnet18", {"no_such_option": 1}, "no_such_option"),
        ("inception_v3", {}, "cannot run on images of 3 x 32 x 32"),
        ("torchvision:resnet18", {"in_chans": 1}, "cannot run on images of 1 x 32 x 32 .*--loader.in-chans 3 converts"),
        ("torchvision:resnet18", {"in_chans": 1, "small_images": True}, "cannot run on images of 1 x 32 x 32"),
        ("torchvision:vit_b_16", {"in_chans": 1, "small_images": True}, "cannot run on images of 1 x 32 x 32"),
        ("os:path", {}, "'os:path' is of type module; name a class or a function"),
        ("os:sep", {}, "'os:sep' is of type str; name a class"),
        ("builtins:dict", {}, "is of type type; name a class or a function that returns an nn.Module"),
        ("builtins:getattr", {}, "its parameters cannot be read"),
        (f"{HERE}:MODEL", {}, "is of type Linear; name a class"),
        (f"{HERE}:no_classes", {}, r"cannot be built with \{'num_classes': 5\} \(KeyError"),
        (f"{HERE}:Broken", {}, r"cannot run on images of 3 x 32 x 32 \(KeyError"),
    ],
)
def test_bad_names_are_answered(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        create_backbone(name, 5, 32, **kwargs)


def test_an_embedding_of_width_0_is_refused():
    with pytest.raises(UserError, match="returns an embedding of width 0"):
        create_backbone(f"{HERE}:NoWidth", 0, 32)


def test_a_fresh_head_fits_the_classes_and_grey_images():
    backbone = create_backbone("test_vit", 5, 32, in_chans=1)
    assert backbone(torch.randn(2, 1, 32, 32)).logits.shape == (2, 5)
    assert len(backbone.spec.mean) == 1


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("resnet18", (1, 2, 4, 8)),
        ("test_efficientnet", (1, 2, 4, 8)),
        ("regnety_002", (1, 2, 4, 8)),
        ("test_convnext", (1, 2, 4, 8)),
        ("mobilenetv3_small_050", (1, 2, 4, 8)),
        ("test_vit", (4, 4, 4, 4)),
        ("torchvision:resnet18", (1, 2, 4, 8)),
    ],
)
def test_small_images_get_a_fitting_stem(name, strides):
    backbone = create_backbone(name, 5, 32, small_images=True)
    assert backbone.spec.stage_strides == strides


def test_small_images_are_refused_where_nothing_can_change():
    with pytest.raises(UserError, match="has no argument patch_size"):
        create_backbone("mixer_s16_224", 5, 32, small_images=True)


def test_building_and_probing_draw_no_extra_random_numbers():
    torch.manual_seed(0)
    first = create_backbone("test_resnet", 5, 32).model.state_dict()
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=5).state_dict()
    assert all(torch.equal(first[name], plain[name]) for name in plain)


def test_training_mode_and_statistics_survive_the_probe():
    backbone = create_backbone("test_resnet", 5, 32)
    assert backbone.training
    assert int(backbone.model.bn1.num_batches_tracked) == 0


def test_a_network_in_place_of_a_name_is_refused():
    with pytest.raises(UserError, match=r"name is a Linear; give the name of a model, or 'package\.module:factory'"):
        create_backbone(torch.nn.Linear(2, 2), 5)
