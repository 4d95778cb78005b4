import os

import numpy as np
import pytest
from PIL import Image

from crossdistill import UserError
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.sources import load_source
from tests.data.pictures import bar, fill, noise, put

datasets = pytest.importorskip("datasets")
KINDS = {"cat": 0, "dog": 3, "owl": 5}


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "store"))


def shard(path, kind, labels, images=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = images or [Image.fromarray(noise(i)) for i in range(len(labels))]
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(path)


def named(*names):
    return datasets.ClassLabel(names=list(names))


def load(root, **config):
    return load_data(str(root), LoaderConfig(**config))


def refused(match, root, **config):
    with pytest.raises(UserError, match=match):
        load(root, **config)


def shown(images, names):
    """The class of every picture, by what it shows."""
    found = []
    for i in range(len(images)):
        pixels = np.asarray(images.read(i).convert("L")).astype(int)
        errors = {name: np.abs(pixels - bar(kind)).sum() for name, kind in KINDS.items()}
        found.append(min(errors, key=errors.get))
    return found == [names[label] for label in images.labels]


def pictures(*names):
    return [Image.fromarray(bar(KINDS[name], seed)) for seed, name in enumerate(names)]


def test_labels_are_matched_by_the_names_of_each_shard(tmp_path):
    orders = (["cat", "dog", "owl"], ["owl", "cat", "dog"])
    for place, names in enumerate(orders):
        labels = [0, 1, 2] * 8
        path = tmp_path / f"train-0000{place}-of-00002.parquet"
        shard(path, named(*names), labels, pictures(*(names[k] for k in labels)))
    shard(tmp_path / "test.parquet", named("dog", "owl"), [0, 1] * 5, pictures(*["dog", "owl"] * 5))
    shard(tmp_path / "validation.parquet", datasets.Value("string"), ["owl", "dog"] * 4, pictures(*["owl", "dog"] * 4))
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog", "owl")
    assert [len(part) for part in (data.train, data.val, data.test)] == [48, 8, 10]
    assert all(shown(part, data.class_names) for part in (data.train, data.val, data.test))
    assert any("no test images of 'cat'" in line for line in data.about)


def test_other_classes_are_refused_with_the_difference(tmp_path):
    shard(tmp_path / "a" / "train-0.parquet", named("cat", "dog"), [0, 1] * 6)
    shard(tmp_path / "a" / "train-1.parquet", named("dog", "owl"), [0, 1] * 6)
    refused("name different classes: only one shard has 'cat'; only another has 'owl'", tmp_path / "a")
    shard(tmp_path / "b" / "train.parquet", named("cat", "dog"), [0, 1] * 6)
    shard(tmp_path / "b" / "test.parquet", named("cat", "fox"), [0, 1] * 6)
    refused("the test split has the label 'fox'.* only the training split has 'dog'", tmp_path / "b")
    shard(tmp_path / "c" / "train.parquet", named("cat", "dog"), [0, 1] * 6)
    shard(tmp_path / "c" / "extra.parquet", named("cat", "dog"), [0, 1] * 6)
    assert len(load(tmp_path / "c").train) > 5


@pytest.mark.parametrize(
    ("kind", "labels", "match"),
    [
        (named("a", "b"), [0, 1, None] * 5, r"row 2 of the train split has no label \(5 of 15 rows"),
        (datasets.Value("string"), ["a", None, "b"] * 5, "row 1 of the train split has no label"),
        (datasets.Value("int64"), [1, 2, None] * 5, "row 2 of the train split has no label"),
        (datasets.Sequence(named("a", "b")), [[0], [1]] * 5, "holds List, not one class for each image"),
    ],
)
def test_missing_and_several_labels_are_refused(tmp_path, kind, labels, match):
    shard(tmp_path / "train.parquet", kind, labels)
    refused(match, tmp_path, label_column="label")


def test_text_is_sorted_by_code_point(tmp_path):
    names = ["class10", "class2", "A", "a", "1", "01"]
    shard(tmp_path / "train.parquet", datasets.Value("string"), names * 4)
    data = load(tmp_path, label_column="label")
    assert data.class_names == tuple(sorted(names))


def test_rows_without_a_readable_image(tmp_path):
    shard(tmp_path / "train.parquet", named("a", "b"), [0, 1] * 8)
    table = datasets.Dataset.from_parquet(str(tmp_path / "train.parquet"))
    rows = table.cast_column("image", datasets.Image(decode=False)).to_list()
    rows[3]["image"]["bytes"], rows[5]["image"] = b"junk", None
    features = datasets.Features({"image": datasets.Image(), "label": named("a", "b")})
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "bad" / "train.parquet")
    refused(r"'row 3 of the train split' \(and 1 more\) cannot be read as an image", tmp_path / "bad")
    data = load(tmp_path / "bad", on_bad_image="skip")
    assert sum(len(part) for part in (data.train, data.val, data.test)) == 14


def test_what_lies_beside_the_shards_is_said(tmp_path):
    shard(tmp_path / "train.parquet", named("a", "b"), [0, 1] * 8)
    put(noise(0), tmp_path / "assets" / "logo.png")
    (tmp_path / "README.md").write_text("x")
    about = load(tmp_path).about
    assert "left out: 1 image files beside the parquet shards" in about
    assert "left out: 1 file of other types (.md 1)" in about


def test_copies_of_rows_are_found(tmp_path):
    images = [Image.fromarray(noise(i)) for i in range(16)]
    shard(tmp_path / "train.parquet", named("a", "b"), [0, 1] * 8, images)
    shard(tmp_path / "test.parquet", named("a", "b"), [1, 1], [images[0], Image.fromarray(noise(99))])
    about = "\n".join(load(tmp_path).about)
    assert "held-out images that are copies of training images, byte for byte: row 0 of the test split" in about
    assert "copies of one image in several classes" in about


def test_shards_and_class_folders_are_not_mixed(tmp_path):
    fill(tmp_path)
    shard(tmp_path / "data" / "train-0.parquet", named("a", "b"), [0, 1] * 8)
    refused("holds parquet shards", tmp_path)


def test_labels_are_not_read_where_none_are_asked_for(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [Image.fromarray(noise(i)) for i in range(12)]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    refused("label column", tmp_path)
    data = load(tmp_path, labels="none")
    assert data.class_names == ()
    assert sum(len(part) for part in (data.train, data.val, data.test)) == 12
    shard(tmp_path / "test.parquet", named("cat", "dog"), [0, -1, 1])
    data = load(tmp_path, labels="none")
    assert len(data.test) == 3
    assert set(data.test.labels) == {-1}


def test_a_shard_that_was_replaced_is_read_anew(tmp_path):
    """Also with the same time of change, which `cp -p` and rsync keep; `datasets` would give the rows of before."""
    for labels in ([0, 1] * 12, [1, 0] * 10):
        shard(tmp_path / "data" / "train.parquet", named("cat", "dog"), labels)
        os.utime(tmp_path / "data" / "train.parquet", (1e9, 1e9))
        source = load_source(str(tmp_path / "data"), LoaderConfig())
        assert source.splits["train"].labels == labels


def test_shards_of_two_sets_are_not_joined(tmp_path):
    for name in "ab":
        shard(tmp_path / name / "train.parquet", named("cat", "dog"), [0, 1] * 12)
    refused("have the same name: they may be shards of two sets", tmp_path)


def test_rows_that_hold_paths_are_no_copies(tmp_path):
    cells = [{"bytes": None, "path": str(put(noise(i), tmp_path / "p" / f"{i}.png"))} for i in range(24)]
    shard(tmp_path / "data" / "train.parquet", named("cat", "dog"), [0, 1] * 12, cells)
    assert not [line for line in load(tmp_path / "data").about if "copies" in line]
