import shutil

import pytest
import timm
import torch
from timm.models import save_for_hf

from crossdistill import UserError, create_backbone, load_backbone
from crossdistill.backbones.sources import plain_name
from crossdistill.export.timm_folder import save_student

IMAGES = torch.linspace(0, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64)


@pytest.fixture
def place(tmp_path):
    """A folder that timm wrote, of a transformer with fewer blocks than its architecture has by default."""
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_vit", num_classes=5, img_size=64, depth=4), tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("changes", [{}, {"depth": 6}])
def test_a_model_from_a_folder_is_known_by_its_architecture(place, changes):
    backbone = create_backbone(f"local-dir:{place}", 5, 64, pretrained=not changes, **changes)
    assert backbone.spec.name == backbone.args.name == plain_name(f"local-dir:{place}") == "test_vit"
    assert backbone.args.model_args["depth"] == len(backbone.model.blocks) == changes.get("depth", 4)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", ["test_vit", "resnet10t"])
def test_its_student_needs_the_folder_no_longer(tmp_path, name, small):
    options = {"img_size": 64} if name == "test_vit" else {}
    save_for_hf(timm.create_model(name, num_classes=5, **options), tmp_path / "own")
    student = create_backbone(f"local-dir:{tmp_path / 'own'}", 5, 64, pretrained=True, small_images=small).eval()
    (tmp_path / "run").mkdir()
    save_student(student, tmp_path / "run", list("abcde"))
    shutil.rmtree(tmp_path / "own")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'run'}", pretrained=True).eval()
    ours = load_backbone(tmp_path / "run").eval()
    with torch.no_grad():
        wanted = student(IMAGES).logits
        assert torch.equal(theirs(IMAGES), wanted)
        assert torch.equal(ours(IMAGES).logits, wanted)


def test_a_place_that_cannot_be_read():
    with pytest.raises(UserError, match="model 'local-dir:/nowhere'"):
        create_backbone("local-dir:/nowhere", 5)
    with pytest.raises(UserError, match="model 'local-dir:/nowhere' cannot be read"):
        plain_name("local-dir:/nowhere")


def test_a_new_head_on_pretrained_weights_replaces_the_classifier_alone(place):
    """Also for as many classes: the stored classifier was kept without a word."""
    stored = create_backbone(f"local-dir:{place}", 5, 64, pretrained=True).model.state_dict()
    new = create_backbone(f"local-dir:{place}", 5, 64, pretrained=True, new_head=True).model.state_dict()
    assert [name for name in stored if not torch.equal(stored[name], new[name])] == ["head.weight"]
    assert float(new["head.bias"].abs().max()) == 0


def test_a_new_head_keeps_the_normalisation_of_a_classifier(tmp_path):
    """LeViT's two classifiers have one each."""
    save_for_hf(timm.create_model("levit_128s", num_classes=5), tmp_path / "own")
    name = f"local-dir:{tmp_path / 'own'}"
    stored = create_backbone(name, 5, 224, pretrained=True).model.state_dict()
    new = create_backbone(name, 5, 224, pretrained=True, new_head=True).model.state_dict()
    changed = {key for key in stored if not torch.equal(stored[key], new[key])}
    assert changed == {"head.linear.weight", "head_dist.linear.weight"}
