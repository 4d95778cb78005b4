import pytest
import torch
from safetensors.torch import save_file

from crossdistill import UserError, create_backbone


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
