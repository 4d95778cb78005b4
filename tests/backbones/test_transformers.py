import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from crossdistill import UserError, create_backbone, create_distiller
from crossdistill.backbones.build import classes_of_weights, own_img_size
from tests.backbones.transformers_folders import PROCESSOR, save

DIGITS = [str(number) for number in range(10)]
KINDS = ("vit", "dinov2", "swin", "convnext", "siglip", "clip")
PREFIX = {"vit": 1, "dinov2": 5, "siglip": 0, "clip": 1}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_headless_models_return_their_own_pooled_output_and_hidden_states(tmp_path, kind):
    model = save(tmp_path, kind)
    tower = getattr(model, "vision_model", model)
    assert classes_of_weights(f"hf:{tmp_path}") == 0
    backbone = create_backbone(f"hf:{tmp_path}", 0).eval()
    with torch.no_grad():
        ours = backbone(IMAGES, stages=True)
        theirs = tower(pixel_values=IMAGES, output_hidden_states=True)
    assert ours.logits is None
    close(ours.embedding, theirs.pooler_output)
    assert "pooled output" in backbone.note
    states = theirs.hidden_states
    if kind in PREFIX:
        assert len(states) == 5  # the input of the first block, and the outputs of all four
        expected = [one[:, PREFIX[kind] :].transpose(1, 2).reshape(2, 32, 4, 4) for one in states[1:]]
    elif kind == "swin":
        expected = [theirs.reshaped_hidden_states[number] for number in (0, 1, 2, 4)]
    else:
        expected = [states[number] for number in (1, 2, 3, 4)]
    for one, other in zip(ours.require_stages(), expected, strict=True):
        close(one, other)
    assert backbone.spec.stage_strides == tuple(32 // one.shape[2] for one in expected)
    assert backbone.spec.mean == tuple(PROCESSOR["image_mean"])
    assert backbone.img_size == own_img_size(f"hf:{tmp_path}") == 32


@pytest.mark.parametrize("kind", KINDS)
def test_classifiers_return_their_own_logits_with_the_names_of_their_classes(tmp_path, kind):
    model = save(tmp_path, kind, DIGITS)
    assert classes_of_weights(f"hf:{tmp_path}") == 10
    backbone = create_backbone(f"hf:{tmp_path}", 10).eval()
    with torch.no_grad():
        ours, theirs = backbone(IMAGES), model(pixel_values=IMAGES)
        close(backbone.model.get_classifier()(ours.embedding), theirs.logits)
    close(ours.logits, theirs.logits)
    assert backbone.class_names == tuple(DIGITS)
    # Without the classifier, or with a new one, the embedding is the same.
    with torch.no_grad():
        close(create_backbone(f"hf:{tmp_path}", 0).eval()(IMAGES).embedding, ours.embedding)
        other = create_backbone(f"hf:{tmp_path}", 7).eval()(IMAGES)
    close(other.embedding, ours.embedding)
    assert other.logits.shape == (2, 7)


def test_two_classifiers_are_read_and_replaced_together(tmp_path):
    """Distilled DeiT averages the logits of two tokens."""
    model = save(tmp_path, "deit", DIGITS)
    with torch.no_grad():
        theirs = model(pixel_values=IMAGES)
        tokens = model.deit(pixel_values=IMAGES).last_hidden_state[:, :2]
        for classes in (10, 7, 0):
            backbone = create_backbone(f"hf:{tmp_path}", classes).eval()
            ours = backbone(IMAGES, stages=True)
            close(ours.embedding, tokens.mean(dim=1))
            assert "mean of its classifiers' inputs" in backbone.note
            assert not backbone.classifies_embedding
            assert backbone.model.prefix_tokens == 2
            if classes == 10:
                close(ours.logits, theirs.logits)
            elif classes:
                pairs = zip(backbone.model.get_classifier(), tokens.unbind(1), strict=True)
                close(ours.logits, sum(head(token) for head, token in pairs) / 2)
            else:
                assert ours.logits is None


@pytest.mark.parametrize("kind", ["vit", "siglip", "swin"])
def test_a_layer_of_the_body_with_as_many_outputs_is_no_classifier(tmp_path, kind):
    model = save(tmp_path, kind, [str(number) for number in range(64 if kind != "siglip" else 32)])
    with torch.no_grad():
        ours = create_backbone(f"hf:{tmp_path}", len(model.config.id2label)).eval()
        assert ours.classifies_embedding
        close(ours(IMAGES).logits, model(pixel_values=IMAGES).logits)


def test_without_a_pooler_the_embedding_is_the_mean_of_the_patches(tmp_path):
    model = save(tmp_path, "vit")
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    backbone = create_backbone(f"hf:{tmp_path}", 0).eval()
    with torch.no_grad():
        close(backbone(IMAGES).embedding, model(pixel_values=IMAGES).last_hidden_state[:, 1:].mean(dim=1))
    assert "mean of its patches" in backbone.note


def test_a_missing_weight_is_refused_and_not_drawn_at_random(tmp_path):
    save(tmp_path, "vit")
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "1" in name and name.endswith("weight"))
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights"):
        create_backbone(f"hf:{tmp_path}", 0)


def test_another_input_size_is_interpolated_as_transformers_does(tmp_path):
    model = save(tmp_path, "vit")
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        ours = create_backbone(f"hf:{tmp_path}", 0, img_size=48).eval()(images)
        close(ours.embedding, model(pixel_values=images, interpolate_pos_encoding=True).pooler_output)


def test_the_processor_decides_size_and_normalisation(tmp_path):
    save(tmp_path, "convnext", size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True)
    assert own_img_size(f"hf:{tmp_path}") == 32
    # Pixels in [-1, 1]: the scale is 2 / 255, the mean 1.
    save(tmp_path, "convnext", rescale_factor=2 / 255, image_mean=[1.0] * 3, image_std=[1.0] * 3)
    backbone = create_backbone(f"hf:{tmp_path}", 0)
    assert backbone.spec.mean == pytest.approx((0.5,) * 3)
    assert backbone.spec.std == pytest.approx((0.5,) * 3)
    save(tmp_path, "convnext", do_normalize=False, do_flip_channel_order=True)
    flipped = create_backbone(f"hf:{tmp_path}", 0).eval()
    assert flipped.spec.mean == (0.0,) * 3
    assert flipped.spec.std == (1.0,) * 3
    with torch.no_grad():
        close(flipped(IMAGES).embedding, backbone.eval()(IMAGES.flip(1)).embedding)


def test_what_cannot_be_used_is_refused_in_plain_words(tmp_path):
    save(tmp_path / "mae", "mae")
    with pytest.raises(UserError, match="another output for the same images"):
        create_backbone(f"hf:{tmp_path / 'mae'}", 0)
    save(tmp_path / "vit", "vit")
    with pytest.raises(UserError, match=r"--loader\.in-chans 3"):
        create_backbone(f"hf:{tmp_path / 'vit'}", 0, in_chans=1)
    with pytest.raises(UserError, match="small_images"):
        create_backbone(f"hf:{tmp_path / 'vit'}", 0, small_images=True)
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="normalisation is not known"):
        create_backbone(f"hf:{tmp_path / 'vit'}", 0)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="cannot be loaded by transformers"):
        create_backbone(f"hf:{tmp_path / 'none'}", 0)


def test_arguments_are_settings_of_the_config(tmp_path):
    save(tmp_path, "vit")
    for arguments in ({"weights_only": False}, {"attn_implementation": "someone/kernels"}, {"use_safetensors": False}):
        with pytest.raises(UserError, match="is not a setting of its config"):
            create_backbone(f"hf:{tmp_path}", 0, **arguments)
    made = create_backbone(f"hf:{tmp_path}", 0, attn_implementation="eager", layer_norm_eps=1e-3)
    assert made.model.body.config.layer_norm_eps == 1e-3


def test_code_in_a_folder_is_not_run(tmp_path):
    save(tmp_path, "vit")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        create_backbone(f"hf:{tmp_path}", 0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("method", ["rsd", "fitnet", "rkd", "fbt"])
def test_methods_train_with_such_a_teacher(tmp_path, method):
    save(tmp_path, "vit")
    teacher = create_backbone(f"hf:{tmp_path}", 0)
    student = create_backbone("test_resnet", 10, img_size=32)
    options = {"ofa": False} if method == "fbt" else {}
    distiller = create_distiller(method, student=student, teacher=teacher, options=options)
    step = distiller(IMAGES, torch.tensor([0, 1]))
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert not any("body" in name for name in distiller.state_dict())


def test_maps_with_their_channels_last_are_read_as_such(tmp_path):
    model = save(tmp_path, "hiera", size={"height": 64, "width": 64})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = create_backbone(f"hf:{tmp_path}", 0).eval()(images, stages=True).require_stages()
        theirs = model(pixel_values=images, output_hidden_states=True).reshaped_hidden_states
    assert [tuple(one.shape[1:]) for one in maps] == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
    close(maps[1], theirs[2].permute(0, 3, 1, 2))


def test_a_new_head_replaces_the_classifier_alone(tmp_path):
    save(tmp_path, "vit", DIGITS)
    stored = create_backbone(f"hf:{tmp_path}", 10)
    new = create_backbone(f"hf:{tmp_path}", 10, new_head=True)
    changed = [name for name, value in stored.state_dict().items() if not torch.equal(value, new.state_dict()[name])]
    assert changed == ["model.body.classifier.weight", "model.body.classifier.bias"]
    assert (stored.class_names, new.class_names) == (tuple(DIGITS), None)
