import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from crossdistill import BackboneOutput, create_backbone
from crossdistill.config import AugmentConfig
from crossdistill.data.transforms import eval_transform
from crossdistill.evaluation.accuracy import ood_auroc
from crossdistill.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Corrupted
from crossdistill.report.page import accuracy_table, corruption_table
from tests.commands.running import run
from tests.data.pictures import noise, put


def picture(mode="RGB"):
    """Smooth colours with an edge, of middle brightness."""
    rows, columns = np.mgrid[:48, :48]
    pixels = np.stack([90 + rows, 100 + columns, 80 + 60 * (rows > columns)], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_changes_more_and_is_the_same_every_time(name, mode):
    image = picture(mode)
    plain = np.asarray(image).astype(int)
    changes = []
    for severity in SEVERITIES:
        first, second = (CORRUPTIONS[name](image.copy(), severity) for _ in range(2))
        assert (first.mode, first.size) == (image.mode, image.size)
        assert first.tobytes() == second.tobytes()
        changes.append(np.abs(np.asarray(first).astype(int) - plain).mean())
    assert changes[0] > 0.02
    assert all(later > earlier * 0.98 for earlier, later in itertools.pairwise(changes))
    assert changes[-1] > 1.3 * changes[0]


def test_what_is_corrupted_is_what_the_network_sees(monkeypatch):
    spec = create_backbone("test_resnet", 3, 32).spec
    transform = eval_transform(AugmentConfig(), spec, 32)
    monkeypatch.setitem(CORRUPTIONS, "none", lambda image, severity: image)
    image = picture()
    assert torch.allclose(Corrupted(transform, spec, "none", 1)(image), transform(image), atol=0.02)
    shown = Corrupted(transform, spec, "dark", 5)(image) * torch.tensor(spec.std).view(-1, 1, 1)
    shown += torch.tensor(spec.mean).view(-1, 1, 1)
    resized = F.pil_to_tensor(image.resize((32, 32), Image.Resampling.BICUBIC)).float() / 255
    assert torch.allclose(shown, 0.2 * resized, atol=0.02)


def test_the_area_is_that_of_all_pairs():
    known, other = torch.randn(40, 3) * 30 + 5, torch.randn(30, 3) * 30
    found = ood_auroc(lambda x: BackboneOutput(x, x), [(known[:25],), (known[25:],)], [(other,)])
    a, b = known.amax(dim=1), other.amax(dim=1)
    wins = (a[:, None] > b).double() + 0.5 * (a[:, None] == b).double()
    assert found == pytest.approx(100 * float(wins.mean()))
    large = known * 100
    assert ood_auroc(lambda x: BackboneOutput(x, x), [(large,)], [(large - 1,)]) > 50


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(256, 32), (32, 512)])
def test_long_images_are_corrupted_as_well(name, size):
    torch.manual_seed(0)
    for severity in range(1, 6):
        assert CORRUPTIONS[name](picture().resize(size), severity).size == size


def test_the_command_prints_both(tmp_path, capsys, teacher_run):
    for number in range(30):
        put(noise(number, 8, 8, 1), tmp_path / "noise" / f"{number}.png")
    code, shown, err = run(capsys, "eval", teacher_run, "--corruptions", "--ood", tmp_path / "noise", "--json")
    assert code == 0, err
    found = json.loads(shown)
    assert set(found["corruptions"]) == set(CORRUPTIONS)
    assert all(len(values) == 5 for values in found["corruptions"].values())
    assert np.mean(found["corruptions"]["noise"]) < found["top1"]
    assert 0 <= found["ood"] <= 100
    table = corruption_table(found["corruptions"])
    assert [row[0] for row in table.rows] == [*CORRUPTIONS, "mean"]
    assert float(table.rows[-1][-1]) == pytest.approx(np.mean(list(found["corruptions"].values())), abs=0.01)
    assert "AUROC" in accuracy_table({"model": found}).header[-1]
    # Two images are enough, whatever the layout of the data that the model was trained on.
    put(noise(0, 8, 8, 1), tmp_path / "two" / "0.png")
    put(noise(1, 8, 8, 1), tmp_path / "two" / "deep" / "1.png")
    words = ["--ood", tmp_path / "two", "--loader.val-dir", "val", "--loader.label-column", "kind"]
    code, shown, err = run(capsys, "eval", teacher_run, *words, "--json")
    assert code == 0, err
    assert 0 <= json.loads(shown)["ood"] <= 100
    code, _, err = run(capsys, "eval", teacher_run, "--ood", tmp_path / "nothing")
    assert (code, "no such folder" in err) == (2, True)
