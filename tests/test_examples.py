import runpy
from pathlib import Path

import timm
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_plain_pytorch(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "plain_pytorch.py"))
    steps = [eval(line) for line in capsys.readouterr().out.splitlines()]
    assert len(steps) == 16
    assert steps[-1]["rsd"] < steps[0]["rsd"]
    student = timm.create_model("test_vit", num_classes=10, img_size=32, in_chans=1, patch_size=8)
    student.load_state_dict(torch.load(tmp_path / "student.pth", weights_only=True))


def test_a_reader_needs_about_fifteen_lines():
    code = [line for line in (EXAMPLES / "plain_pytorch.py").read_text().splitlines() if line and line[0] not in '"#']
    start = next(i for i, line in enumerate(code) if line.startswith("teacher"))
    assert len(code[start:]) <= 15
