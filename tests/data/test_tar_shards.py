import io
import json
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from crossdistill import UserError
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.datasets import base_of
from tests.commands.running import TINY, run
from tests.data.pictures import bar, noise, put


def content(picture, suffix="png"):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format=suffix)
    return file.getvalue()


def write(path, *members):
    """Write a tar file of (name, bytes or text)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            shard.addfile(entry, io.BytesIO(data))
    return path


def samples(numbers, label=lambda number: str(number % 2), ending="cls"):
    return [
        pair
        for number in numbers
        for pair in ((f"{number:04}.png", content(noise(number))), (f"{number:04}.{ending}", label(number)))
    ]


def load(folder, **config):
    return load_data(str(folder), LoaderConfig(**config))


def test_shards_are_read_by_split_with_the_right_pixels_and_labels(tmp_path):
    write(tmp_path / "train-0000.tar", *samples(range(12), lambda n: str((9, 10, 2)[n % 3])))
    write(tmp_path / "train-0001.tar", *samples(range(12, 24), lambda n: str((9, 10, 2)[n % 3])))
    write(tmp_path / "validation-0000.tar", *samples(range(24, 30), lambda n: str((9, 10, 2)[n % 3]) + "\n"))
    data = load(tmp_path)
    assert data.class_names == ("2", "9", "10")
    seen = {}
    for images in (data.train, data.val, data.test):
        base, chosen = base_of(images)
        for place, index in enumerate(chosen):
            number = int(base.keys[index])
            assert np.array_equal(np.asarray(images.read(place)), noise(number))
            assert images.labels[place] == (1, 2, 0)[number % 3]
            seen[number] = images
    assert len(seen) == 30
    assert base_of(data.test)[0] is base_of(seen[24])[0]
    assert {number for number, images in seen.items() if images is data.test} == set(range(24, 30))


def test_labels_may_be_text_or_entries_of_json_or_named_by_a_file(tmp_path):
    write(tmp_path / "text" / "a.tar", *samples(range(20), lambda n: ("owl", "Ant")[n % 2]))
    assert load(tmp_path / "text").class_names == ("Ant", "owl")
    entry = lambda n: json.dumps({"width": 16, "label": n % 2, "species": ("owl", "ant")[n % 2]})  # noqa: E731
    write(tmp_path / "json" / "a.tar", *samples(range(20), entry, "json"))
    assert load(tmp_path / "json").class_names == ("0", "1")
    assert load(tmp_path / "json", label_column="species").class_names == ("ant", "owl")
    write(tmp_path / "named" / "a.tar", *samples(range(20)))
    (tmp_path / "named" / "classnames.txt").write_text("owl\nant\nbee\n")
    named = load(tmp_path / "named")
    assert named.class_names == ("owl", "ant", "bee")
    base, chosen = base_of(named.train)
    assert named.train.labels == [int(base.keys[index]) % 2 for index in chosen]
    (tmp_path / "named" / "classnames.txt").write_text("owl\n")
    with pytest.raises(UserError, match="has 1 lines with 1 different names; the labels count from 0 to 1"):
        load(tmp_path / "named")


def test_shards_without_labels(tmp_path):
    write(tmp_path / "a.tar", *[(f"{n}.jpg", content(noise(n), "jpeg")) for n in range(20)])
    data = load(tmp_path, labels="none")
    assert not data.labelled
    assert len(data.train) + len(data.val) + len(data.test) == 20
    with pytest.raises(UserError, match=r"sample '0' of .* has no label .cls \(.jpg\); name the ending"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([*samples(range(4)), ("0001.png", content(noise(9)))], "sample '0001' of .* is there twice"),
        ([*samples(range(4)), ("5.png", content(noise(9)))], "sample '5' of .* has no label in .cls"),
        ([*samples(range(4)), ("5.png", content(noise(9))), ("5.cls", " ")], "has no label in .cls"),
        ([*samples(range(4)), ("5.cls", "1")], r"has no image \(.cls\)"),
        (
            [*samples(range(4)), ("5.png", b"x"), ("5.jpg", b"x"), ("5.cls", "1")],
            r"several images \(.png, .jpg, .cls\)",
        ),
        ([*samples(range(4)), ("5.png", b"no image"), ("5.cls", "1")], "sample '5' of .* cannot be read as an image"),
        ([*samples(range(4)), ("5.cls", "1"), ("5.cls", "2")], "has two files .cls"),
        (samples(range(4), lambda n: "7"), "hold 1 class"),
        (samples(range(4), lambda n: "{", "json"), "the file .json of sample '0000' .* cannot be read"),
        ([], "holds no files"),
    ],
)
def test_what_a_shard_must_hold(tmp_path, members, said):
    write(tmp_path / "a.tar", *members)
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_labels_of_other_splits_are_those_of_the_training_split(tmp_path):
    write(tmp_path / "train.tar", *samples(range(20), lambda n: ("3", "5")[n % 2]))
    write(tmp_path / "test.tar", *samples(range(20, 24), lambda n: "1"))
    with pytest.raises(UserError, match=r"sample '0020' of .*test.tar' \(test\) has the label '1'"):
        load(tmp_path)
    write(tmp_path / "test.tar", *samples(range(20, 24), lambda n: "-1"))
    assert base_of(load(tmp_path).test)[0].split != "test"


def test_damaged_shards_are_refused(tmp_path):
    whole = write(tmp_path / "a" / "a.tar", *samples(range(20)))
    load(tmp_path / "a")
    stored = whole.read_bytes()
    end = len(stored.rstrip(b"\0"))
    for size in (end - 600, end - 5000, 512 * 8, 300, 0):
        whole.write_bytes(stored[:size])
        with pytest.raises(UserError, match="tar shard"):
            load(tmp_path / "a")
    # tarfile takes a header that it cannot read for the end of the archive.
    whole.write_bytes(stored[: 512 * 40] + b"\x07" * 512 + stored[512 * 41 :])
    with pytest.raises(UserError, match="tar shard"):
        load(tmp_path / "a")
    whole.write_bytes(stored + stored)
    with pytest.raises(UserError, match="goes on after its end mark"):
        load(tmp_path / "a")
    with tarfile.open(whole, "w:gz") as shard:
        shard.addfile(tarfile.TarInfo("0.cls"), io.BytesIO(b""))
    with pytest.raises(UserError, match="it is compressed, so images cannot be read in any order: unpack it"):
        load(tmp_path / "a")


def test_a_run_on_shards_is_scored_on_its_own_images(tmp_path, capsys):
    def members(numbers):
        pairs = ((f"{n}.png", content(bar(n % 4, n))) for n in numbers)
        return [one for n, pair in zip(numbers, pairs, strict=True) for one in (pair, (f"{n}.cls", str(n % 4)))]

    for number in range(2):
        write(tmp_path / "data" / f"train-{number}.tar", *members(range(number * 40, number * 40 + 40)))
    write(tmp_path / "data" / "test-0.tar", *members(range(80, 100)))
    out = tmp_path / "run"
    words = [*TINY, "--data", tmp_path / "data", "--loader.batch-size", "16", "--method", "none", "--out", out]
    code, _, err = run(capsys, "fit", *words)
    assert code == 0, err
    assert "4 classes" in err
    assert json.loads((out / "metrics.json").read_text())["student"]["test"]["images"] == 20
    code, _, err = run(capsys, "eval", out, "--json")
    assert code == 0, err
    write(tmp_path / "data" / "test-0.tar", *members(range(81, 101)))
    code, _, err = run(capsys, "eval", out)
    assert code == 2
    assert "test" in err


@pytest.mark.parametrize("kind", ["hard link", "symbolic link", "gnu", "pax"])
def test_what_is_not_stored_plainly_is_refused(tmp_path, kind):
    """Their bytes stand elsewhere in the shard, or nowhere: links, and files with holes that GNU tar leaves out."""
    path = write(tmp_path / "shards" / "a.tar", *samples(range(20)))
    if kind in ("gnu", "pax"):
        source = tmp_path / "source"
        source.mkdir()
        for name, data in samples(range(20)):
            (source / name).write_bytes(data.encode() if isinstance(data, str) else data)
        with (source / "0003.png").open("ab") as file:
            file.truncate(2**20)
        sparse = ["-S", "--hole-detection=raw", f"--format={kind}"]
        if subprocess.run(["tar", *sparse, "-cf", str(path), "-C", str(source), "."], check=False).returncode:
            pytest.skip("this tar cannot write sparse entries")
    else:
        with tarfile.open(path, "a") as shard:
            entry = tarfile.TarInfo("0099.png")
            entry.type = tarfile.LNKTYPE if kind == "hard link" else tarfile.SYMTYPE
            entry.linkname = "0001.png"
            shard.addfile(entry)
    with pytest.raises(UserError, match="which is not read: write the shard anew with plain files"):
        load(tmp_path / "shards")


def test_numbers_are_written_in_one_way_and_name_lines(tmp_path):
    write(tmp_path / "a" / "a.tar", *samples(range(20), lambda n: ("1", "01", "2")[n % 3]))
    with pytest.raises(UserError, match="write one class as '01' and as '1'"):
        load(tmp_path / "a")
    write(tmp_path / "b" / "a.tar", *samples(range(20), lambda n: ("00", "01")[n % 2]))
    (tmp_path / "b" / "classnames.txt").write_text("owl\nant\n\n\n")
    data = load(tmp_path / "b")
    assert data.class_names == ("owl", "ant")
    base, chosen = base_of(data.train)
    assert data.train.labels == [int(base.keys[index]) % 2 for index in chosen]
    assert not [line for line in data.about if "other types" in line]
    (tmp_path / "b" / "classnames.txt").write_text("owl\n\nant\n")
    with pytest.raises(UserError, match="has 3 lines with 2 different names"):
        load(tmp_path / "b")


@pytest.mark.parametrize("kind", ["tar", "csv", "parquet"])
def test_minus_one_is_no_class_of_the_training_images(tmp_path, kind):
    labels = [str((0, 1, 2)[n % 3]) for n in range(19)] + ["-1"]
    if kind == "tar":
        write(tmp_path / "a.tar", *samples(range(20), lambda n: labels[n]))
        data = tmp_path
    elif kind == "csv":
        for number in range(20):
            put(noise(number), tmp_path / f"{number}.png")
        data = tmp_path / "list.csv"
        data.write_text("path,label\n" + "".join(f"{n}.png,{label}\n" for n, label in enumerate(labels)))
    else:
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        images = [Image.fromarray(noise(number)) for number in range(20)]
        rows = {"image": images, "label": list(map(int, labels))}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
        data = tmp_path
    with pytest.raises(UserError, match="give training images the label -1, which stands for no label"):
        load(data, label_column="label" if kind == "parquet" else None)


def test_labels_of_all_splits_are_read_in_the_same_place(tmp_path):
    write(tmp_path / "train.tar", *samples(range(20)))
    write(tmp_path / "test.tar", *samples(range(20, 24), lambda n: json.dumps({"label": 1}), "json"))
    with pytest.raises(UserError, match=r"sample '0020' .* has no label in .cls"):
        load(tmp_path)
    write(tmp_path / "test.tar", *samples(range(20, 24)))
    put(noise(0), tmp_path / "beside.png")
    assert any("1 image files beside the tar shards" in line for line in load(tmp_path).about)
    large = json.dumps({"label": 1, "text": "x" * 2**21})
    write(tmp_path / "large" / "a.tar", *samples(range(4), lambda n: large, "json"))
    with pytest.raises(UserError, match="has more than 1 MiB"):
        load(tmp_path / "large")


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path):
    write(tmp_path / "train-0000.tar", *samples(range(24), lambda n: "\ufeff" + str((9, 10, 2)[n % 3])))
    assert load(tmp_path).class_names == ("2", "9", "10")
