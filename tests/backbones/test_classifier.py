import pytest
import torch
from safetensors.torch import save_file

import crossdistill as cd
from crossdistill.backbones.build import classes_of_weights
from crossdistill.backbones.classifier import pretrained_classes

MODELS = [
    ("test_resnet", {}),
    ("test_vit", {"patch_size": 8}),
    ("test_efficientnet", {}),
    ("test_convnext", {}),
    ("tests.backbones.own_head:Small", {}),
    ("torchvision:shufflenet_v2_x0_5", {}),
]


@pytest.fixture(params=MODELS, ids=lambda model: model[0])
def stored(request, tmp_path):
    name, args = request.param
    model = cd.create_backbone(name, 7, 64, **args)
    weights = {key: value.clone() for key, value in model.model.state_dict().items()}
    save_file({f"module.{key}": value for key, value in weights.items()}, tmp_path / "w.safetensors")
    return name, args, weights, tmp_path / "w.safetensors"


def test_classes_are_read_from_the_weights(stored):
    name, args, _, path = stored
    assert classes_of_weights(name, 64, checkpoint=path, **args) == 7


def test_a_new_head_keeps_every_other_weight(stored, caplog):
    name, args, weights, path = stored
    with pytest.raises(cd.UserError, match="other shape"):
        cd.create_backbone(name, 3, 64, checkpoint=path, **args)
    with caplog.at_level("WARNING", logger="crossdistill"):
        made = cd.create_backbone(name, 3, 64, checkpoint=path, new_head=True, **args)
    assert "new classifier" in caplog.text
    state = made.model.state_dict()
    changed = [
        key for key, value in weights.items() if value.shape != state[key].shape or not torch.equal(value, state[key])
    ]
    assert {key.rpartition(".")[0] for key in changed} == {changed[0].rpartition(".")[0]}
    assert len(changed) == 2
    assert made.spec.num_classes == 3


def test_what_else_does_not_fit_is_refused(stored, tmp_path):
    name, args, weights, _ = stored
    first = next(iter(weights))
    save_file({key: value for key, value in weights.items() if key != first}, tmp_path / "cut.safetensors")
    with pytest.raises(cd.UserError, match=f"missing: {first}"):
        cd.create_backbone(name, 3, 64, checkpoint=tmp_path / "cut.safetensors", new_head=True, **args)


def test_headless_weights(tmp_path):
    model = cd.create_backbone("test_vit", 0, 32, patch_size=8)
    save_file(dict(model.model.state_dict()), tmp_path / "w.safetensors")
    assert classes_of_weights("test_vit", 32, checkpoint=tmp_path / "w.safetensors", patch_size=8) == 0
    body = cd.create_backbone("test_vit", 5, 32, checkpoint=tmp_path / "w.safetensors", new_head=True, patch_size=8)
    assert torch.equal(body.model.norm.weight, model.model.norm.weight)


def test_classes_of_pretrained_weights():
    assert pretrained_classes("resnet50.a1_in1k") == 1000
    assert pretrained_classes("vit_small_patch14_dinov2.lvd142m") == 0
    assert pretrained_classes("vit_base_patch32_clip_224.openai") == 0
    assert pretrained_classes("convnext_base.clip_laion2b_augreg_ft_in12k") == 11821
    assert pretrained_classes("mvitv2_base_cls.fb_inw21k") == 19168
    assert pretrained_classes("torchvision:resnet18") == 1000
    assert pretrained_classes("package.module:factory") is None


@pytest.mark.parametrize("name", ["repvit_m0_9", "caformer_s18", "levit_128s"])
def test_classifiers_of_several_layers_and_several_classifiers(name, tmp_path):
    whole, body = cd.create_backbone(name, 7).model, cd.create_backbone(name, 0).model
    for classes, model in ((7, whole), (0, body)):
        torch.save(model.state_dict(), tmp_path / "w.pth")
        assert classes_of_weights(name, checkpoint=tmp_path / "w.pth") == classes


@pytest.mark.parametrize("name", ["levit_128s", "caformer_s18", "repvit_m0_9"])
def test_a_new_head_of_several_layers(name, tmp_path):
    """The parts below its last layer are kept where the file has them, and new where it has not."""
    headed = cd.create_backbone(name, 5, 224)
    save_file(dict(headed.model.state_dict()), tmp_path / "headed.safetensors")
    made = cd.create_backbone(name, 7, 224, checkpoint=tmp_path / "headed.safetensors", new_head=True)
    stored, new = headed.model.state_dict(), made.model.state_dict()
    others = {key for key in stored if not (stored[key].shape == new[key].shape and torch.equal(stored[key], new[key]))}
    assert 0 < len(others) <= 4
    assert all(len(new[key]) == 7 for key in others)
    body = cd.create_backbone(name, 0, 224)
    save_file(dict(body.model.state_dict()), tmp_path / "body.safetensors")
    with pytest.raises(cd.UserError, match="all but the classifier fits"):
        cd.create_backbone(name, 7, 224, checkpoint=tmp_path / "body.safetensors")
    made = cd.create_backbone(name, 7, 224, checkpoint=tmp_path / "body.safetensors", new_head=True)
    assert all(torch.equal(value, made.model.state_dict()[key]) for key, value in body.model.state_dict().items())
