import argparse
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crossdistill import UserError, create_backbone
from crossdistill.backbones.build import classes_of_weights


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(5)
    return create_backbone("test_resnet", 5, 32)


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    )


WRAPPERS = {
    "plain": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w, "args": {"lr": 0.1}},
    "ddp": lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
    "compiled": lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
    "lightning": lambda w: {"state_dict": {**{f"net.{k}": v for k, v in w.items()}, "criterion.weight": torch.ones(3)}},
    "ours": lambda w: {
        "state_dict": {
            **{f"distiller.student.model.{k}": torch.zeros_like(v) for k, v in w.items()},
            **{f"ema.module.model.{k}": v for k, v in w.items()},
            "distiller.method.decoupler.reduce.weight": torch.ones(3),
        }
    },
    "net": lambda w: {"net": w, "acc": 91.2, "epoch": 3},
    "model_state_dict": lambda w: {"model_state_dict": w, "optimizer_state_dict": {"state": {0: {"step": 3}}}},
    "deep": lambda w: {"checkpoint": {"model": {f"module.{k}": v for k, v in w.items()}}},
    "namespace": lambda w: {"state_dict": w, "args": argparse.Namespace(lr=0.1, out=pathlib.Path("a/b"))},
    "numpy": lambda w: {"state_dict": w, "best": np.float64(3.0), "seen": np.int64(4), "curve": np.ones(3)},
    "windows": lambda w: {"model": w, "path": pathlib.PureWindowsPath("a/b")},
    "old": lambda w: {k: v for k, v in w.items() if not k.endswith("num_batches_tracked")},
    "copies": lambda w: {"student": w, "teacher": {k: v.clone() for k, v in w.items()}},
    "swa": lambda w: {"model": {k: torch.zeros_like(v) for k, v in w.items()}, "swa_model": w},
    "prefixed ema": lambda w: {
        **{k: torch.zeros_like(v) for k, v in w.items()},
        **{f"ema.{k}": v for k, v in w.items()},
    },
    "timm_ema": lambda w: {"state_dict": {k: torch.zeros_like(v) for k, v in w.items()}, "state_dict_ema": w},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_common_wrappers_are_understood(source, tmp_path, wrapper):
    path = tmp_path / "weights.pth"
    torch.save(WRAPPERS[wrapper](source.model.state_dict()), path)
    assert same(create_backbone("test_resnet", 5, 32, checkpoint=path), source)


def test_safetensors(source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(source.model.state_dict(), path)
    assert same(create_backbone("test_resnet", 5, 32, checkpoint=path), source)


def refused(path, match, classes=5):
    with pytest.raises(UserError, match=match):
        create_backbone("test_resnet", classes, 32, checkpoint=path)


def test_whole_or_not_at_all(source, tmp_path):
    path = tmp_path / "weights.pth"
    weights = source.model.state_dict()
    torch.save(weights, path)
    refused(path, r"fc\.weight is \(5, 96\), the model has \(7, 96\)", classes=7)
    torch.save({k: v for k, v in weights.items() if k != "fc.bias"}, path)
    refused(path, r"missing: fc\.bias")
    torch.save({**weights, "extra.weight": torch.ones(2)}, path)
    refused(path, r"not expected: extra\.weight")
    torch.save({"optimizer": {"lr": 1}}, path)
    refused(path, "holds no weights")


def test_files_that_cannot_be_read(source, tmp_path):
    refused(tmp_path / "none.pth", "does not exist")
    for suffix, save in (("pth", torch.save), ("safetensors", save_file)):
        path = tmp_path / f"weights.{suffix}"
        save(source.model.state_dict(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused(path, "truncated")
    code = tmp_path / "code.pth"
    torch.save({"state_dict": source}, code)
    refused(code, "cannot be read")


DINO = {
    "student": lambda w: {f"module.backbone.{k}": torch.zeros_like(v) for k, v in w.items()},
    "teacher": lambda w: {f"backbone.{k}": v for k, v in w.items()},
}


def test_one_of_several_networks_is_chosen_by_its_key(source, tmp_path):
    path = tmp_path / "dino.pth"
    stored = {key: make(source.model.state_dict()) for key, make in DINO.items()}
    torch.save({**stored, "args": argparse.Namespace(arch="x")}, path)
    refused(
        path, r"several networks that fit the model: 'student\.module\.backbone', 'teacher\.backbone'; choose one with"
    )
    for key in ("teacher", "teacher.backbone"):
        chosen = create_backbone("test_resnet", 5, 32, checkpoint=path, checkpoint_key=key)
        assert same(chosen, source)
        assert chosen.weights_part == "teacher.backbone"
    other = create_backbone("test_resnet", 5, 32, checkpoint=path, checkpoint_key="student")
    assert not same(other, source)
    with pytest.raises(UserError, match="has no network under 'ema'; parts that share names: 'student"):
        create_backbone("test_resnet", 5, 32, checkpoint=path, checkpoint_key="ema")


@pytest.mark.slow
def test_the_same_file_gives_the_same_answer_in_every_process(source, tmp_path):
    path = tmp_path / "two.pth"
    weights = source.model.state_dict()
    torch.save({f"{p}.{k}": v + i for i, p in enumerate(("b", "a", "c.ema")) for k, v in weights.items()}, path)
    torch.save({f"{p}.{k}": v + i for i, p in enumerate(("b", "a")) for k, v in weights.items()}, tmp_path / "none.pth")
    code = (
        "import sys, crossdistill as cd\n"
        "print(cd.create_backbone('test_resnet', 5, 32, checkpoint=sys.argv[1]).weights_part)\n"
        "try: cd.create_backbone('test_resnet', 5, 32, checkpoint=sys.argv[2])\n"
        "except cd.UserError as error: print(str(error).partition('several')[2])"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", code, path, tmp_path / "none.pth"],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 2, 3)
    }
    assert len(shown) == 1
    assert shown.pop().splitlines()[0] == "c.ema"


def test_a_pickled_module_is_refused_with_what_to_do(source, tmp_path):
    path = tmp_path / "whole.pt"
    for content in (source.model, {"model": source.model, "epoch": 3}):
        torch.save(content, path)
        refused(
            path,
            r"whole pickled module \(timm\S+\), .* torch\.save\(torch\.load\(FILE, weights_only=False\)\.state_dict",
        )
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    refused(path, "is a TorchScript program")
    torch.save({"model": source.model.state_dict(), "kept": Kept()}, path)
    refused(path, r"holds an object of type tests\.backbones\.test_checkpoint\.Kept")


class Kept:
    pass


@pytest.mark.parametrize(
    ("beside", "names"),
    [
        ({"classes": list("abcde")}, tuple("abcde")),
        ({"class_to_idx": {"x": 1, "y": 0, "z": 2, "v": 4, "w": 3}}, tuple("yxzwv")),
        ({"idx_to_class": {0: "x", 1: "y", 2: "z", 3: "v", 4: "w"}}, tuple("xyzvw")),
        ({"config": {"id2label": {"1": "y", "0": "x", "2": "z", "3": "v", "4": "w"}}}, tuple("xyzvw")),
        ({"hyper_parameters": {"data": {"class_names": list("abcde")}}}, tuple("abcde")),
        ({"meta": {"CLASSES": tuple("abcde")}}, tuple("abcde")),
        (
            {"class_to_idx": {n: torch.tensor(i) for i, n in enumerate("abcde")}, "classes": list("abcde")},
            tuple("abcde"),
        ),
        ({"class_names": list("abc")}, "3 class names are stated for 5 classes: they are not used"),
        ({"class_to_idx": {"x": 1, "y": 5}}, "the class numbers in 'class_to_idx' of the checkpoint are not 0, 1, 2"),
    ],
)
def test_class_names_in_a_file_are_read(source, tmp_path, beside, names):
    torch.save({"state_dict": source.model.state_dict(), **beside}, tmp_path / "w.pth")
    made = create_backbone("test_resnet", 5, 32, checkpoint=tmp_path / "w.pth")
    if isinstance(names, str):
        assert made.class_names is None
        assert made.note.startswith(names)
    else:
        assert (made.class_names, made.note) == (names, "")


def test_names_of_older_timm_versions_are_converted(tmp_path):
    """As timm 0.6 named Swin's weights: the downsampling at the end of a stage, the classifier directly."""
    args = {"patch_size": 2, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
    model = create_backbone("swin_tiny_patch4_window7_224", 5, 32, **args)
    weights = {}
    for name, value in model.model.state_dict().items():
        old = re.sub(r"layers\.(\d)\.downsample", lambda stage: f"layers.{int(stage[1]) - 1}.downsample", name)
        weights[old.replace("head.fc.", "head.")] = value.clone()
    assert "layers.0.downsample.reduction.weight" in weights
    for content in (weights, {"state_dict": {f"module.{name}": value for name, value in weights.items()}}):
        torch.save(content, tmp_path / "old.pth")
        loaded = create_backbone("swin_tiny_patch4_window7_224", 5, 32, checkpoint=tmp_path / "old.pth", **args)
        for name, value in model.model.state_dict().items():
            assert torch.equal(loaded.model.state_dict()[name], value), name
    assert classes_of_weights("swin_tiny_patch4_window7_224", 32, checkpoint=tmp_path / "old.pth", **args) == 5
    # Weights of another patch size would be resampled: they are refused.
    weights["patch_embed.proj.weight"] = torch.zeros(16, 3, 4, 4)
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"does not fit the model"):
        create_backbone("swin_tiny_patch4_window7_224", 5, 32, checkpoint=tmp_path / "other.pth", **args)


def test_weights_that_are_no_plain_arrays_are_refused(source, tmp_path):
    path, weights = tmp_path / "weights.pth", source.model.state_dict()
    whole = weights["fc.weight"]
    changed = {
        "sparse": whole.to_sparse(),
        "quantised": torch.quantize_per_tensor(whole, 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([whole[0], whole[1, :3]]),
    }
    for kind, value in changed.items():
        torch.save({**weights, "fc.weight": value}, path)
        # Newer versions of torch do not read some kinds at all.
        refused(path, rf"'fc\.weight' is a {kind} tensor|object of type torch\.\S+")
    for dtype in (torch.int8, torch.complex64):
        torch.save({**weights, "fc.weight": whole.to(dtype)}, path)
        refused(path, rf"no numbers of floating point: fc\.weight is {dtype}")
    torch.save({name: value.half() if value.is_floating_point() else value for name, value in weights.items()}, path)
    create_backbone("test_resnet", 5, 32, checkpoint=path)


def test_a_tensor_of_many_dimensions_takes_no_memory_before_it_is_refused(source, tmp_path):
    path = tmp_path / "weights.pth"
    # A stored number, seen as 2^40 of them.
    torch.save({**source.model.state_dict(), "fc.weight": torch.zeros(1, 1).expand(2**20, 2**20)}, path)
    refused(path, r"fc\.weight is \(1048576, 1048576\)")


def test_two_orders_of_the_classes_are_refused(source, tmp_path):
    path, weights = tmp_path / "weights.pth", source.model.state_dict()
    beside = {"classes": list("abcde"), "class_to_idx": {name: i for i, name in enumerate("badce")}}
    torch.save({"state_dict": weights, **beside}, path)
    refused(path, r"states its classes twice, as \['a', 'b'.* and as \['b', 'a'")


def other_weights(source):
    return {
        name: value + 1 if value.is_floating_point() else value for name, value in source.model.state_dict().items()
    }


def test_a_key_means_the_network_right_under_it(source, tmp_path):
    path = tmp_path / "weights.pth"
    for names in (("model", "ema.model"), ("net", "best.net"), ("state_dict.model", "state_dict.ema.model")):
        content = {}
        for name, weights in zip(names, (source.model.state_dict(), other_weights(source)), strict=True):
            place = content
            for part in name.split(".")[:-1]:
                place = place.setdefault(part, {})
            place.setdefault(name.split(".")[-1], {}).update(weights)
        torch.save(content, path)
        assert same(
            source, create_backbone("test_resnet", 5, 32, checkpoint=path, checkpoint_key=names[0].split(".")[-1])
        )


def test_the_state_of_an_optimiser_is_no_network(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"net": source.model.state_dict(), "opt": {"averages": other_weights(source)}}, path)
    assert same(source, create_backbone("test_resnet", 5, 32, checkpoint=path))


def test_names_stored_twice_and_numbers_that_are_not_finite_are_refused(source, tmp_path):
    path, weights = tmp_path / "weights.pth", source.model.state_dict()
    torch.save({**weights, **{f"_orig_mod.{name}": value + 1 for name, value in weights.items()}}, path)
    refused(path, r"holds '_orig_mod\.conv1\.\S+' both with and without '_orig_mod\.'")
    for number in (float("nan"), float("inf")):
        torch.save({**weights, "fc.bias": torch.full((5,), number)}, path)
        refused(path, r"numbers that are not finite, in 'fc\.bias'")
    for number, message in ((float("nan"), "numbers that are not finite"), (-1.0, "variances below 0")):
        torch.save({**weights, "conv1.1.running_var": torch.full_like(weights["conv1.1.running_var"], number)}, path)
        refused(path, rf"{message}, in 'conv1\.1\.running_var'")


def test_numbers_of_eight_bits_are_read(source, tmp_path):
    weights = {
        name: value.to(torch.float8_e4m3fn) if value.is_floating_point() else value
        for name, value in source.model.state_dict().items()
    }
    torch.save(weights, tmp_path / "weights.pth")
    found = create_backbone("test_resnet", 5, 32, checkpoint=tmp_path / "weights.pth").model.state_dict()
    assert torch.equal(found["fc.weight"], weights["fc.weight"].float())


def test_a_network_without_a_classifier_takes_the_rest_of_a_file(source, tmp_path):
    torch.save(source.model.state_dict(), tmp_path / "weights.pth")
    body = create_backbone("test_resnet", 0, 32, checkpoint=tmp_path / "weights.pth")
    assert body.note == "the classifier of the weights (fc) is left out"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(body.eval()(images).embedding, source.eval()(images).embedding)
    weights = source.model.state_dict()
    torch.save({name: value for name, value in weights.items() if name != "conv1.0.weight"}, tmp_path / "less.pth")
    with pytest.raises(UserError, match=r"missing: conv1\.0\.weight"):
        create_backbone("test_resnet", 0, 32, checkpoint=tmp_path / "less.pth")


def test_the_kind_of_a_file_is_read_from_its_content(source, tmp_path):
    weights = source.model.state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "weights.pt")
    torch.save(weights, tmp_path / "weights.safetensors")
    for path in tmp_path.iterdir():
        assert same(source, create_backbone("test_resnet", 5, 32, checkpoint=path))


AVERAGES = {
    "lacks a weight": (lambda w: {"model": w, "model_ema": dict(list(w.items())[1:])}, "under 'model_ema' lack"),
    "a few weights": (lambda w: {"model": w, "model_ema": dict(list(w.items())[7:10])}, "under 'model_ema' lack"),
    "other classes": (
        lambda w: {"model": w, "swa": {k: v[:3] if k.startswith("fc.") else v for k, v in w.items()}},
        "under 'swa' have other shapes",
    ),
    "a list": (lambda w: {"model": w, "ema": {"decay": 0.9, "shadow_params": list(w.values())}}, "other names"),
    "names without dots": (
        lambda w: {
            **{f"model.{k}": v for k, v in w.items()},
            **{f"model_ema.{k.replace('.', '')}": v for k, v in w.items()},
        },
        "under 'model_ema' have other names",
    ),
    "Lightning": (
        lambda w: {"state_dict": w, "callbacks": {"EMA": {"ema_state_dict": dict(list(w.items())[1:])}}},
        "under 'callbacks.EMA.ema_state_dict' lack",
    ),
}


@pytest.mark.parametrize("new_head", [False, True])
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_that_is_not_used_is_named(tmp_path, caplog, kind, new_head):
    make, message = AVERAGES[kind]
    weights = dict(create_backbone("test_resnet", 5, 32).model.state_dict())
    torch.save(make(weights), tmp_path / "w.pth")
    with caplog.at_level("WARNING", logger="crossdistill"):
        backbone = create_backbone("test_resnet", 5, 32, checkpoint=tmp_path / "w.pth", new_head=new_head)
    assert torch.equal(backbone.model.state_dict()["conv1.0.weight"], weights["conv1.0.weight"])
    if not (new_head and kind == "other classes"):  # its body fits, and is used
        assert message in caplog.text
        assert "not used" in caplog.text


def test_whole_weights_say_nothing_of_averages(tmp_path, caplog):
    weights = dict(create_backbone("test_resnet", 5, 32).model.state_dict())
    numbers = {"ema_decay": torch.tensor(0.9), "num_averaged": torch.tensor(3), "ema_loss": torch.ones(4)}
    contents = (
        weights,
        {"model": weights, **numbers, "metrics": {"ema_loss": torch.ones(3)}},
        {"m": {}, "model_ema": weights},
        {"model": weights, "model_ema": dict(weights)},
        {"model": weights, "optimizer": {"ema": dict(list(weights.items())[3:])}},
        {"model": weights, "graph": [torch.eye(3).to_sparse()]},
    )
    for place, content in enumerate(contents):
        torch.save(content, tmp_path / f"{place}.pth")
        with caplog.at_level("WARNING", logger="crossdistill"):
            create_backbone("test_resnet", 5, 32, checkpoint=tmp_path / f"{place}.pth")
    assert not caplog.records
    torch.save({"losses": [torch.ones(1), torch.ones(1)], "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no weights"):
        create_backbone("test_resnet", 5, 32, checkpoint=tmp_path / "w.pth")
    several = {"model": weights, "model_ema": shifted(weights, 1), "model_ema2": shifted(weights, 2)}
    torch.save(several, tmp_path / "w.pth")
    with pytest.raises(UserError, match="several networks"):
        create_backbone("test_resnet", 5, 32, checkpoint=tmp_path / "w.pth")


def test_the_classes_are_those_of_a_network_that_has_a_classifier(tmp_path):
    """An average of the body alone says nothing of classes."""
    weights = dict(create_backbone("test_resnet", 5, 32).model.state_dict())
    body = {name: value for name, value in shifted(weights, 1).items() if not name.startswith("fc.")}
    torch.save({"model": weights, "model_ema": body}, tmp_path / "w.pth")
    assert classes_of_weights("test_resnet", 32, checkpoint=tmp_path / "w.pth") == 5


def shifted(weights, by):
    return {name: value + by if value.is_floating_point() else value for name, value in weights.items()}
