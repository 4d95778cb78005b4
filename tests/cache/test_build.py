import importlib
import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image
from rich.console import Console

import crossdistill as cd
from crossdistill import UserError, progress
from crossdistill.cache import TeacherCache, Work, build_cache
from crossdistill.cache.build import check_fits
from crossdistill.cache.fingerprint import _describe_data, _describe_teacher, _spread, short_name
from crossdistill.cache.store import missing_shards
from crossdistill.config import AugmentConfig, LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.datasets import Arrays, base_of
from crossdistill.data.loaders import WithTeacher
from tests.backbones.transformers_folders import save
from tests.cache.conftest import LOADER, Pair
from tests.processes import in_two_processes

KEYS = [(0, 0), (49, 1), (17, 0), (17, 1), (16, 1), (15, 0)]


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_what_is_read_is_what_the_teacher_says_of_these_views(pair, written):
    stored = written.read(KEYS).map(lambda tensor: tensor.float())
    live = pair.teacher(pair.views.__getitems__(KEYS).images)
    torch.testing.assert_close(stored.logits, live.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(stored.embedding, live.embedding, rtol=1e-3, atol=1e-3)
    assert stored.stages is None


def test_a_batch_brings_its_output(pair, written):
    batch = WithTeacher(pair.views, written).__getitems__(KEYS)
    assert torch.equal(batch.teacher.logits, written.read(KEYS).logits)
    assert torch.equal(batch.images, pair.views.__getitems__(KEYS).images)


def test_every_byte_counts(folder, tmp_path):
    shard = next(copy(folder, tmp_path).glob("view-001-00002.bin"))
    whole = shard.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"view-001-00002.bin' was changed after it was written"):
            TeacherCache(tmp_path / "copy", 2)
        TeacherCache(tmp_path / "copy", 1)  # the other view is whole
    shard.write_bytes(whole[:-2])
    with pytest.raises(UserError, match="its checksum or size differs"):
        TeacherCache(tmp_path / "copy", 2, verify=False)
    shard.write_bytes(whole)
    TeacherCache(tmp_path / "copy", 2)


def test_a_missing_shard_is_said_and_made_again(pair, folder, tmp_path):
    other = copy(folder, tmp_path)
    (other / "view-000-00001.json").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 8 shards of 2 views; `crossdistill cache`"):
        TeacherCache(other, 2)
    pair.build(other)
    for name in ("view-000-00001.bin", "view-001-00003.bin"):
        assert (other / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(UserError, match="lacks 4 of 12 shards of 3 views"):
        TeacherCache(other, 3)


def test_an_interrupted_build_goes_on(pair, folder, tmp_path, monkeypatch):
    forward, calls = type(pair.teacher).forward, []

    def stopping(self, images, stages=False):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, images, stages)

    monkeypatch.setattr(type(pair.teacher), "forward", stopping)
    with pytest.raises(KeyboardInterrupt):
        pair.build(tmp_path / "cut")
    assert len(missing_shards(tmp_path / "cut", pair.format, 2)) == 7
    calls.extend([0] * 10)
    pair.build(tmp_path / "cut")
    # 100 views of images were seen once, but for the shard that was cut.
    assert sum(calls) == 100 + 8 + 8
    assert (tmp_path / "cut" / "view-001-00003.bin").read_bytes() == (folder / "view-001-00003.bin").read_bytes()
    assert not list((tmp_path / "cut").glob("*.partial"))


def build_here(rank, folder):
    pair = Pair()
    seen = []
    pair.teacher.register_forward_hook(lambda m, inputs, o: seen.append(len(inputs[0])))
    pair.build(folder)
    return sum(seen)


def test_two_processes_share_the_work(folder, tmp_path):
    shared = tmp_path / "shared"
    seen = in_two_processes(build_here, shared)
    assert sum(seen) == 100
    for shard in folder.glob("*.bin"):
        assert (shared / shard.name).read_bytes() == shard.read_bytes()


def test_a_full_disk_stops_cleanly(pair, tmp_path):
    folder = pair.build(tmp_path / "full")
    before = (folder / "view-000-00000.bin").read_bytes()
    for name in ("view-001-00002.bin", "view-001-00002.json"):
        (folder / name).unlink()
    # The one device that is always full.
    os.symlink("/dev/full", folder / "view-001-00002.partial")
    with pytest.raises(UserError, match="is full; the shards written so far are complete"):
        pair.build(folder)
    assert not os.path.lexists(folder / "view-001-00002.partial")
    assert (folder / "view-000-00000.bin").read_bytes() == before
    pair.build(folder)
    TeacherCache(folder, 2)


def test_too_little_room_is_said_before_the_work(pair, tmp_path):
    with pytest.raises(UserError, match=r"MiB free, the rest of .* needs \d{6,} MiB: fewer --loader.views"):
        pair.build(tmp_path / "huge", images=10**12, shard_images=10**12)


def changed_teacher():
    pair = Pair()
    with torch.no_grad():
        next(pair.backbone.parameters()).view(-1)[0] += 1e-6
    return pair


def with_teacher(name, size=32):
    teacher = cd.create_backbone(name, 10, size, in_chans=1)
    if name == "test_resnet":
        teacher.load_state_dict(Pair().backbone.state_dict())
    return Pair(teacher=teacher)


def with_stem():
    """The same weights, run in another way."""
    other = Pair()
    other.backbone.args = replace(other.backbone.args, small_images=True)
    return other


def with_augment(**changes):
    return Pair(augment=AugmentConfig(**changes))


def with_loader(**changes):
    return Pair(loader=replace(LOADER, **changes))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (changed_teacher, "another teacher: weights differ"),
        (lambda: with_teacher("resnet10t"), "another teacher: name was 'test_resnet', is now 'resnet10t'"),
        (lambda: with_teacher("test_resnet", 48), r"another teacher: img_size was \[32\], is now \[48\]"),
        (lambda: with_stem(), r"another teacher: built was .*"),
        (lambda: with_augment(hflip=0.25), r"another transform: hflip was 0.5, is now 0.25"),
        (lambda: with_augment(hflip=0.5, crop="none"), "another transform: crop was 'padded', is now 'none'"),
        (lambda: with_loader(view_seed=1), "another transform: seed was 0, is now 1"),
        (lambda: with_loader(resident=False), "another transform: resident was True, is now False"),
        (lambda: with_loader(max_train=49), "another data: images was 50, is now 49"),
        (lambda: with_loader(split_seed=5), "another data: labels differ"),
    ],
)
def test_a_stale_cache_is_refused_with_the_reason(pair, folder, other, reason):
    other = other()
    with pytest.raises(UserError, match=f"was made with {reason}; give another folder, or --cache auto"):
        check_fits(folder, pair.format, other.record)
    assert short_name(other.record) != short_name(pair.record)


def test_other_contents_and_another_version_are_refused(pair, folder, tmp_path):
    with pytest.raises(UserError, match=r"other contents: top_k was None, is now 3"):
        check_fits(folder, replace(pair.format, top_k=3), pair.record)
    other = copy(folder, tmp_path)
    manifest = json.loads((other / "cache.json").read_text())
    manifest["fingerprint"]["version"] = 0
    (other / "cache.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"another version of this code \(0, this is \d+\)"):
        check_fits(other, pair.format, pair.record)
    (other / "cache.json").unlink()
    with pytest.raises(UserError, match=r"is not a teacher cache: cache\.json"):
        TeacherCache(other, 2)


def test_a_damaged_manifest_is_named(folder, tmp_path):
    other = copy(folder, tmp_path)
    whole = json.loads((other / "cache.json").read_text())
    contents = ["", "{", "{}", "3", "[]", json.dumps({**whole, "fingerprint": 3})]
    for change in ({"dtype": "float8"}, {"shard_images": 0}, {"images": "many"}, {"stages": [[1]]}, {"top_k": 99}):
        contents.append(json.dumps({**whole, "format": {**whole["format"], **change}}))
    for text in contents:
        (other / "cache.json").write_text(text)
        with pytest.raises(UserError, match=r"cache\.json' is damaged") as refused:
            TeacherCache(other, 2)
        assert "\n" not in str(refused.value)


def test_a_manifest_of_another_structure_is_another_one(pair, folder, tmp_path):
    other = copy(folder, tmp_path)
    manifest = json.loads((other / "cache.json").read_text())
    manifest["fingerprint"]["teacher"] = 3
    (other / "cache.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was made with another teacher"):
        check_fits(other, pair.format, pair.record)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}'])
def test_a_damaged_checksum_is_a_changed_shard(folder, tmp_path, text):
    other = copy(folder, tmp_path)
    (other / "view-001-00000.json").write_text(text)
    with pytest.raises(UserError, match="was changed after it was written"):
        TeacherCache(other, 2)


def test_one_changed_pixel_of_a_small_set_is_noticed(pair):
    other = Pair()
    inner = other.data.train
    while hasattr(inner, "indices"):
        inner = inner.images
    before = other.record["data"]["pixels"]
    inner.pixels[int(other.data.train.images.indices[other.data.train.indices[0]])][0, 0] ^= 1
    assert other.record["data"]["pixels"] != before == pair.record["data"]["pixels"]


def test_another_student_of_the_same_views_shares_the_cache(pair, folder):
    """It has another normalisation, but the teacher receives the same images."""
    other = Pair(student="resnet10t", teacher=pair.backbone)
    assert other.student.spec.mean != pair.student.spec.mean
    check_fits(folder, pair.format, other.record)
    live = other.teacher(other.views.__getitems__(KEYS)[0])
    stored = TeacherCache(folder, 2).read(KEYS).map(lambda tensor: tensor.float())
    torch.testing.assert_close(stored.logits, live.logits, rtol=1e-3, atol=1e-3)


def test_views_read_image_by_image_do_not_depend_on_workers(tmp_path):
    pair = Pair(
        LoaderConfig(batch_size=16, max_train=20, views=2, resident=False),
        AugmentConfig(hflip=0.5, auto_augment="rand-m9-mstd0.5", erasing=0.5),
    )
    for workers in (0, 2):
        pair.build(tmp_path / str(workers), workers)
    for shard in (tmp_path / "0").glob("*.bin"):
        assert shard.read_bytes() == (tmp_path / "2" / shard.name).read_bytes()


def test_a_teacher_without_a_classifier_stores_no_logits(tmp_path):
    pair = Pair(teacher=cd.create_backbone("test_resnet", 0, 32, in_chans=1))
    assert pair.format.row.names == ("embedding",)
    stored = TeacherCache(pair.build(tmp_path), 2).read(KEYS)
    assert stored.logits is None
    live = pair.teacher(pair.views.__getitems__(KEYS).images)
    torch.testing.assert_close(stored.embedding.float(), live.embedding, rtol=1e-3, atol=1e-3)


def test_progress_is_said_where_there_is_no_terminal(pair, tmp_path, capsys):
    work = Work(pair.teacher, pair.views, 8)
    build_cache(tmp_path, pair.format, pair.record, 2, work, Console(stderr=True))
    assert "teacher cache  8/8 shards" in capsys.readouterr().err


def test_each_of_several_writers_shows_what_all_have_written(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    outputs = [io.StringIO(), io.StringIO()]

    def write(out):
        work = Work(pair.teacher, pair.views, 8)
        build_cache(tmp_path / "cache", pair.format, pair.record, 2, work, Console(file=out, width=80))

    threads = [Thread(target=write, args=(out,)) for out in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out in outputs:
        counts = [
            int(re.fullmatch(r"teacher cache  (\d+)/8 shards  .*", line)[1]) for line in out.getvalue().splitlines()
        ]
        assert counts == sorted(counts)
        assert counts[-1] == 8
    # 50 images in shards of 16, two views.
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 8


def test_a_build_that_goes_on_counts_what_was_written_before(pair, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    other = copy(folder, tmp_path)
    (other / "view-001-00003.json").unlink()
    out = io.StringIO()
    build_cache(other, pair.format, pair.record, 2, Work(pair.teacher, pair.views, 8), Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    # The last shard has two images.
    assert [line.split("  ")[1] for line in lines] == ["7/8 shards", "8/8 shards"]


def test_a_changed_image_that_is_not_among_the_sampled_is_noticed(tmp_path):
    """Files of one size, of which 256 are decoded."""
    for index in range(330):
        pixels = torch.full((8, 8), index % 200, dtype=torch.uint8).numpy()
        (tmp_path / str(index % 2)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / str(index % 2) / f"{index:03}.bmp")
    files, arrays = (
        load_data(str(tmp_path), LoaderConfig(val_fraction=0.02)).train,
        Arrays(torch.zeros(300, 8, 8, dtype=torch.uint8).numpy(), [0] * 300),
    )
    for images in (files, arrays):
        before = _describe_data(images)
        unseen = next(index for index in range(len(images)) if index not in _spread(len(images), 256))
        if images is arrays:
            arrays.pixels[unseen, 0, 0] = 9
        else:
            base, chosen = base_of(files)
            path = Path(base.paths[int(chosen[unseen])])
            changed = bytearray(path.read_bytes())
            changed[-1] ^= 1
            path.write_bytes(changed)
        after = _describe_data(images)
        assert [key for key in after if after[key] != before[key]] == ["contents"]


def described(folder, module, text):
    """Describe the teacher that the code of a module builds."""
    (folder / f"{module}.py").write_text(text)
    sys.modules.pop(module, None)
    importlib.invalidate_caches()
    torch.manual_seed(0)
    backbone = cd.create_backbone(f"{module}:build", 5, 32)
    return _describe_teacher(cd.Teacher(backbone, backbone.spec))


def test_a_teacher_of_changed_code_is_another_one(tmp_path, monkeypatch):
    """The same weights and arguments, but another pooling."""
    text = """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(in_chans, 8, 3, 2), torch.nn.Linear(8, num_classes)
    def forward(self, x):
        return self.fc(self.conv(x).POOL)
def build(num_classes=5, in_chans=3):
    torch.manual_seed(0)
    return Net(num_classes, in_chans)
"""
    monkeypatch.syspath_prepend(tmp_path)
    pools = ("mean((2, 3))", "mean((2, 3))", "amax((2, 3))")
    records = [described(tmp_path, "netcode", text.replace("POOL", pool)) for pool in pools]
    assert records[0] == records[1]
    assert [key for key in records[0] if records[0][key] != records[2][key]] == ["code"]


def test_a_factory_of_torchs_modules_alone_is_code(tmp_path, monkeypatch):
    text = """
from torch import nn
def build(num_classes=5, in_chans=3):
    return nn.Sequential(nn.Conv2d(in_chans, 8, 3, 2), nn.ACT(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
"""
    monkeypatch.syspath_prepend(tmp_path)
    acts = ("ReLU", "ReLU", "Hardswish")
    records = [described(tmp_path, "sequence", text.replace("ACT", act)) for act in acts]
    assert records[0] == records[1]
    assert [key for key in records[0] if records[0][key] != records[2][key]] == ["structure", "code"]


def test_a_setting_of_a_transformers_model_is_part_of_the_teacher(tmp_path):
    save(tmp_path, "vit")
    records = []
    for settings in ({}, {}, {"layer_norm_eps": 1e-3}, {"hidden_act": "relu"}):
        backbone = cd.create_backbone(f"hf:{tmp_path}", 0, **settings)
        records.append(_describe_teacher(cd.Teacher(backbone, backbone.spec))["structure"])
    assert records[0] == records[1]
    assert len(set(records)) == 3
