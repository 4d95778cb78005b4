"""Inputs that are not square: sizes as text, networks of many families, views, and all commands from end to end."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

import crossdistill as cd
from crossdistill.backbones.structure import _prefix_tokens, token_grid
from crossdistill.cli import main
from crossdistill.config import AugmentConfig
from crossdistill.data.transforms import train_transform
from crossdistill.export.timm_folder import save_student
from crossdistill.image_size import image_size, sides_of, written
from crossdistill.types import BackboneSpec


@pytest.mark.parametrize(
    ("given", "size", "text"),
    [
        (96, 96, 96),
        ("96", 96, 96),
        ("96x96", 96, 96),
        ("256x128", (256, 128), "256x128"),
        ((256, 128), (256, 128), "256x128"),
        ([64, 96], (64, 96), "64x96"),
    ],
)
def test_a_size_is_read(given, size, text):
    assert image_size(given) == size
    assert written(image_size(given)) == text
    assert image_size(text) == size


@pytest.mark.parametrize(
    "given",
    [
        0,
        -1,
        "0x32",
        "32x",
        "x32",
        "32x32x3",
        "a",
        "",
        (1, 2, 3),
        [32],
        True,
        "1e3",
        "²",
        8193,
        10**9,
        None,
        32.0,
        [32.0, 32],
    ],
)
def test_what_is_no_size_is_refused(given):
    with pytest.raises(cd.UserError, match="image size"):
        image_size(given)


def test_tokens_are_laid_out_in_the_proportions_of_the_image():
    assert token_grid(32, (64, 32)) == (8, 4)
    assert token_grid(32, (32, 64)) == (4, 8)
    assert token_grid(36, (96, 96)) == (6, 6)
    assert token_grid(33, (64, 32)) is None
    assert token_grid(24, (100, 72)) == (6, 4)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("test_resnet", {}),
        ("test_vit", {}),
        ("test_vit", {"stages": ["blocks.0", "blocks.1", "blocks.3", "blocks.5"]}),
        ("test_convnext", {}),
        ("test_efficientnet", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}),
        ("mobilevitv2_050", {}),
        ("edgenext_xx_small", {}),
        ("pvt_v2_b0", {}),
        ("poolformerv2_s12", {}),
        ("torchvision:mobilenet_v3_small", {}),
        ("torchvision:swin_t", {}),
    ],
)
@pytest.mark.parametrize("size", [(128, 64), (64, 96)])
def test_stages_have_the_proportions_of_the_image(name, arguments, size):
    backbone = cd.create_backbone(name, 5, size, **arguments)
    assert backbone.img_size == size
    assert backbone.stage_problem is None
    output = backbone.eval()(torch.randn(2, 3, *size), stages=True)
    assert output.logits.shape == (2, 5)
    for stage, stride in zip(output.require_stages(), backbone.spec.stage_strides, strict=True):
        assert abs(stage.shape[2] - size[0] / stride) <= 1
        assert abs(stage.shape[3] - size[1] / stride) <= 1
        assert stage.shape[2] != stage.shape[3]


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_the_small_stem_counts_cells_along_the_shorter_side(name, small):
    backbone = cd.create_backbone(name, 5, (64, 32), small_images=small)
    last = backbone.eval()(torch.randn(1, 3, 64, 32), stages=True).require_stages()[-1]
    assert min(last.shape[2:]) >= (4 if small else 1)


@pytest.mark.parametrize("method", ["rsd", "hcd", "fbt", "ofa", "fitnet", "rsd{spatial=2}"])
@pytest.mark.parametrize(
    ("teacher", "student"),
    [(("test_resnet", (64, 32)), ("test_vit", (48, 96))), (("test_vit", 64), ("test_convnext", (64, 32)))],
)
def test_methods_train_pairs_of_other_proportions(method, teacher, student):
    teacher, student = (cd.create_backbone(name, 5, size) for name, size in (teacher, student))
    name, _, rest = method.partition("{")
    distiller = cd.create_distiller(name, student=student, teacher=teacher, options={"spatial": 2} if rest else None)
    step = distiller(torch.randn(4, 3, *sides_of(student.img_size)), torch.tensor([0, 1, 2, 3]))
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters() if p.requires_grad)


SPEC = BackboneSpec("none", 5, 8, None, None, None, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
@pytest.mark.parametrize("mode", ["center", "squash", "auto"])
def test_both_sizes_show_the_same_part(crop, mode):
    """A smooth image: the mean colour of a view of 96x48 is that of the same view at 48x24, and of a square one."""
    rows, columns = np.mgrid[0:240, 0:120].astype(np.float32)
    image = Image.fromarray(np.stack([rows, 2 * columns, rows / 2 + columns], axis=-1).astype(np.uint8))
    config = AugmentConfig(crop=crop, crop_mode=mode, color_jitter=0)
    sizes = ((96, 48), (48, 24), 64)
    views = [train_transform(config, SPEC, size, (96, 48)) for size in sizes]
    for seed in range(8):
        seen = []
        for view, size in zip(views, sizes, strict=True):
            torch.manual_seed(seed)
            random.seed(seed)
            tensor = view(image)
            assert tensor.shape == (3, *sides_of(size))
            seen.append(tensor.mean(dim=(1, 2)))
        assert torch.allclose(seen[0], seen[1], atol=0.03)
        if mode != "center" or crop == "resized":
            assert torch.allclose(seen[0], seen[2], atol=0.03)


def test_crops_keep_the_proportions_of_the_image():
    """Without squashing, a circle is as high as it is wide in a crop for an input that is twice as high as wide."""
    ys, xs = np.mgrid[0:200, 0:200]
    circle = Image.fromarray((((ys - 100) ** 2 + (xs - 100) ** 2 < 40**2) * 255).astype(np.uint8)).convert("RGB")
    view = train_transform(AugmentConfig(crop="resized", crop_mode="center", scale=(0.9, 1.0)), SPEC, (128, 64))
    proportions = []
    for seed in range(40):
        random.seed(seed)
        inside = view(circle)[0] > 0.5
        height, width = int(inside.any(dim=1).sum()), int(inside.any(dim=0).sum())
        if 0 < width < 64 and height < 128:
            proportions.append(height / width)
    assert 0.75 < float(np.median(proportions)) < 1.34


@pytest.fixture(scope="module")
def tall(tmp_path_factory):
    """Write images of 60x30 pixels in three classes that differ in where they are bright."""
    root = tmp_path_factory.mktemp("tall")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6), ("test", 6)):
        for label in range(3):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (60, 30, 3), dtype=np.uint8)
                pixels[20 * label : 20 * label + 20] += 120
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def test_every_command_takes_a_size_that_is_not_square(tall, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--data", str(tall), "--loader.batch-size", "8", "--engine.threads", "1", "--img-size", "48x24"]
    teacher = ["teacher", "--teacher", "test_resnet", "--epochs", "12", "--optim.lr", "5e-3", "--out", "teacher"]
    assert main([*teacher, *common]) == 0
    assert json.loads((tmp_path / "teacher/config.json").read_text())["crossdistill"]["img_size"] == [48, 24]
    fit = ["fit", "--teacher-checkpoint", "teacher", "--student", "test_vit", "--method", "rsd", "--cache", "auto"]
    sized = [*common[:-1], "64x32"]
    more = ["--augment.crop", "resized", "--augment.scale", "[0.8, 1]", "--augment.teacher-view", "own"]
    more += ["--loader.views", "2", "--epochs", "12", "--optim.lr", "3e-3", "--out", "student"]
    assert main([*fit, *sized, *more]) == 0
    scores = json.loads((tmp_path / "student/metrics.json").read_text())
    assert scores["student"]["test"]["top1"] > 60
    assert main(["eval", "student"]) == 0
    for target, more in (("onnx", ["--input", "image"]), ("timm", [])):
        assert main(["export", "student", "--to", target, "--out", f"made-{target}", *more]) == 0
    capsys.readouterr()
    answers = []
    for model in ("student", "made-onnx", "made-timm"):
        assert main(["predict", model, str(tall / "test"), "--format", "csv"]) == 0
        answers.append([line.split(",")[:2] for line in capsys.readouterr().out.splitlines()])
    assert len(answers[0]) == 19
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_prefix_tokens_are_told_from_a_grid_of_exact_proportions(prefix):
    model = torch.nn.Identity()
    assert _prefix_tokens(6 + prefix, model, (8, 12)) == prefix
    with pytest.raises(cd.UserError, match="are not a square grid"):
        _prefix_tokens(8, model, (32, 32))


VIT = {"patch_size": 16}


@pytest.mark.parametrize(
    ("name", "arguments", "before", "now"),
    [
        ("test_vit", VIT, (64, 32), (32, 64)),
        ("test_vit", VIT, (64, 16), (32, 32)),
        ("test_vit", VIT, 64, (128, 32)),
        ("mixer_s32_224", {}, (128, 32), 64),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 1)}, (32, 16), (16, 32)),
        ("torchvision:swin_t", {}, (64, 32), (32, 64)),
        ("test_resnet", {}, (64, 32), (32, 64)),
    ],
)
def test_positions_of_a_run_are_not_taken_for_others_of_the_same_number(name, arguments, before, now, tmp_path):
    model = cd.create_backbone(name, 3, before, **arguments)
    save_student(model, tmp_path, ("a", "b", "c"))
    assert cd.create_backbone(name, 3, before, checkpoint=tmp_path, **arguments).img_size == before
    if name in ("test_vit", "mixer_s32_224", "swin_tiny_patch4_window7_224"):
        with pytest.raises(cd.UserError, match="at other places"):
            cd.create_backbone(name, 3, now, checkpoint=tmp_path, **arguments)
    else:
        assert cd.create_backbone(name, 3, now, checkpoint=tmp_path, **arguments).img_size == now


def test_transformers_positions_of_a_long_image_are_not_taken_for_a_square(tmp_path):
    from tests.backbones.transformers_folders import save

    save(tmp_path, "vit", size={"height": 64, "width": 16})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_size": [64, 16], "patch_size": [8, 8]}))
    assert cd.create_backbone(f"hf:{tmp_path}", 0).img_size == (64, 16)
    with pytest.raises(cd.UserError, match="those of a square alone"):
        cd.create_backbone(f"hf:{tmp_path}", 0, 64)


def test_a_size_can_be_given_in_every_form(capsys):
    assert main(["models", "test_resnet", "--img-size", "64x32"]) == 0
    assert "64x32" in capsys.readouterr().out
    assert main(["models", "test_resnet", "--img-size", "64x"]) == 2
    # YAML would read a hexadecimal number.
    assert main(["models", "test_resnet", "--img-size", "0x32"]) == 2


@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin", "convnext", "siglip"])
def test_transformers_models_on_the_size_of_their_processor(tmp_path, kind):
    from tests.backbones.transformers_folders import save

    model = save(tmp_path, kind, size={"height": 64, "width": 32})
    tower = getattr(model, "vision_model", model)
    backbone = cd.create_backbone(f"hf:{tmp_path}", 0).eval()
    assert backbone.img_size == (64, 32)
    images = torch.randn(2, 3, 64, 32)
    extra = {} if kind in ("convnext", "dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        ours, theirs = backbone(images, stages=True), tower(pixel_values=images, **extra)
    torch.testing.assert_close(ours.embedding, theirs.pooler_output.flatten(1), rtol=0, atol=1e-5)
    for stage, stride in zip(ours.require_stages(), backbone.spec.stage_strides, strict=True):
        assert stage.shape[2:] == (64 // stride, 32 // stride)
