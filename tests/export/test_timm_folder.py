import json

import pytest
import timm
import torch

import crossdistill as cd
from crossdistill.export.timm_folder import save_student

NAMES = tuple(f"class {i}" for i in range(5))


@pytest.mark.parametrize(
    ("name", "args"),
    [("test_resnet", {}), ("test_vit", {"patch_size": 8}), ("test_efficientnet", {"small_images": True})],
)
def test_timm_and_we_load_the_same_network(name, args, tmp_path):
    backbone = cd.create_backbone(name, 5, 32, **args).eval()
    save_student(backbone, tmp_path, NAMES)
    images = torch.randn(2, 3, 32, 32)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        expected = backbone(images).logits
        torch.testing.assert_close(theirs(images), expected)
        torch.testing.assert_close(cd.load_backbone(tmp_path).eval()(images).logits, expected)
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == list(NAMES)
    assert tuple(theirs.pretrained_cfg["mean"]) == backbone.spec.mean


def test_a_model_that_is_not_timms_loads_with_us(tmp_path):
    backbone = cd.create_backbone("torchvision:squeezenet1_1", 5, 64).eval()
    save_student(backbone, tmp_path, NAMES)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(cd.load_backbone(tmp_path).eval()(images).logits, backbone(images).logits)


def test_a_folder_that_is_none_is_refused(tmp_path):
    texts = [None, "{}", "[]", "null", "{", '{"crossdistill": 3}', '{"crossdistill": {}}']
    for args in ({"name": 3, "num_classes": 10}, {"name": "test_resnet", "num_classes": "10"}, {"model_args": [1]}):
        texts.append(json.dumps({"crossdistill": args}))
    for text in texts:
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(cd.UserError, match=r"is not a finished run|was not written by crossdistill") as refused:
            cd.load_backbone(tmp_path)
        assert "\n" not in str(refused.value)


def test_changed_weights_are_refused(tmp_path):
    backbone = cd.create_backbone("test_resnet", 3, 32)
    save_student(backbone, tmp_path, ("a", "b", "c"))
    assert cd.load_backbone(tmp_path).spec.num_classes == 3
    path = tmp_path / "student.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(cd.UserError, match="was changed after it was written"):
        cd.load_backbone(tmp_path)
    # The folder of an earlier version states no checksum.
    config = json.loads((tmp_path / "config.json").read_text())
    del config["weights_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    cd.load_backbone(tmp_path)
