import io
import pickle

import numpy as np
import pytest
from PIL import Image

from crossdistill import UserError
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data


def write_folder(root, splits=("train", "val", "test"), classes=("cat", "dog", "owl"), count=10, mode="RGB"):
    rng = np.random.default_rng(0)
    for split in splits:
        for place, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                shape = (20, 24) if mode == "L" else (20, 24, 3)
                pixels = rng.integers(60 * place, 60 * place + 80, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def refused(match, data, **config):
    with pytest.raises(UserError, match=match):
        load_data(str(data), LoaderConfig(**config))


def test_digits_need_nothing():
    data = load_data("digits", LoaderConfig())
    assert (data.num_classes, data.channels, data.size) == (10, 1, (8, 8))
    assert len(data.train) + len(data.val) + len(data.test) == 1797
    assert np.bincount(data.val.labels).min() >= 10


def test_folder_with_all_splits(tmp_path):
    data = load_data(str(write_folder(tmp_path)), LoaderConfig())
    assert data.class_names == ("cat", "dog", "owl")
    assert (data.channels, data.size) == (3, (20, 24))
    assert [len(part) for part in (data.train, data.val, data.test)] == [30, 30, 30]


def test_split_names_in_capitals(tmp_path):
    data = load_data(str(write_folder(tmp_path, ("Train", "Validation"))), LoaderConfig(val_fraction=0.2))
    assert [len(part) for part in (data.train, data.val, data.test)] == [24, 6, 30]


def test_one_evaluation_split_is_the_test_split(tmp_path):
    data = load_data(str(write_folder(tmp_path, ("train", "val"))), LoaderConfig(val_fraction=0.2))
    assert [len(part) for part in (data.train, data.val, data.test)] == [24, 6, 30]
    assert sorted(data.val.labels) == [0, 0, 1, 1, 2, 2]
    kept = {data.train.images.paths[i] for i in data.train.indices}
    held = {data.val.images.paths[i] for i in data.val.indices}
    assert not kept & held
    assert len(kept | held) == 30


def test_folder_without_splits(tmp_path):
    write_folder(tmp_path, ("all",))
    data = load_data(str(tmp_path / "all"), LoaderConfig(val_fraction=0.2))
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 6, 6]


def test_the_split_is_the_same_every_time(tmp_path):
    write_folder(tmp_path, ("train",))
    first, again = (load_data(str(tmp_path), LoaderConfig(val_fraction=0.2)) for _ in range(2))
    other = load_data(str(tmp_path), LoaderConfig(val_fraction=0.2, split_seed=5))
    assert list(first.val.indices) == list(again.val.indices)
    assert list(first.val.indices) != list(other.val.indices)


def test_grey_pictures_have_one_channel_unless_asked(tmp_path):
    write_folder(tmp_path, mode="L")
    assert load_data(str(tmp_path), LoaderConfig()).channels == 1
    assert load_data(str(tmp_path), LoaderConfig(in_chans=3)).channels == 3


def test_a_limit_on_training_images():
    data = load_data("digits", LoaderConfig(max_train=100))
    assert len(data.train) == 100
    assert len(set(data.train.indices)) == 100


def test_bad_folders_are_answered(tmp_path):
    refused("no such folder", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refused("no images in", tmp_path / "empty")
    file = tmp_path / "file.bin"
    file.write_text("x")
    refused("is a file", file)
    refused("1 class folder", write_folder(tmp_path / "one", classes=("cat",)))
    extra = write_folder(tmp_path / "extra")
    write_folder(tmp_path / "extra", ("test",), classes=("zebra",))
    refused("'zebra' .* is a class that the training split does not have", extra)
    stray = write_folder(tmp_path / "stray")
    Image.new("RGB", (8, 8)).save(stray / "train" / "preview.png")
    refused(r"preview\.png' is in no class folder", stray)
    void = write_folder(tmp_path / "void")
    (void / "train" / "yak").mkdir()
    refused("class folder 'yak' .* holds no images", void)
    write_folder(tmp_path / "odd", ("learn", "exam"))
    refused("have the same folders", tmp_path / "odd")
    write_folder(tmp_path / "only", ("test",))
    refused("has 'test' but no 'train'", tmp_path / "only")
    broken = write_folder(tmp_path / "broken")
    (broken / "train" / "cat" / "3.png").write_text("this is no picture")
    refused(r"cat/3\.png' cannot be read as an image", broken)


def test_a_picture_cut_short_is_named_when_it_is_read(tmp_path):
    root = write_folder(tmp_path)
    path = root / "train" / "owl" / "0.png"
    path.write_bytes(path.read_bytes()[:-400])
    data = load_data(str(root), LoaderConfig())
    index = data.train.paths.index(str(path))
    with pytest.raises(UserError, match=r"owl/0\.png' cannot be read as an image"):
        data.train.read(index)


def write_parquet(root, count=12, label="label", named=True, seed=1, **files):
    datasets = pytest.importorskip("datasets")
    for split in ("train", "test"):
        rng = np.random.default_rng(seed)
        images = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]
        kind = datasets.ClassLabel(names=["a", "b", "c"]) if named else datasets.Value("string")
        labels = [i % 3 if named else "abc"[i % 3] for i in range(count)]
        features = datasets.Features({"picture": datasets.Image(), label: kind, "other": datasets.Value("int64")})
        table = datasets.Dataset.from_dict({"picture": images, label: labels, "other": [7] * count}, features=features)
        table.to_parquet(root / f"{split}-00000-of-00001.parquet")
    return root


def test_parquet_columns_are_found_from_the_schema(tmp_path):
    data = load_data(str(write_parquet(tmp_path)), LoaderConfig(val_fraction=0.25))
    assert (data.class_names, data.channels, data.size) == (("a", "b", "c"), 3, (16, 16))
    assert [len(part) for part in (data.train, data.val, data.test)] == [9, 3, 12]


def test_other_images_in_the_rows_are_another_input_of_a_run(tmp_path):
    from crossdistill.config import RunConfig
    from crossdistill.training.inputs import digests

    def found(root, seed):
        root.mkdir()
        return digests(RunConfig(), load_data(str(write_parquet(root, seed=seed)), LoaderConfig(val_fraction=0.25)))

    one, same, other = found(tmp_path / "1", 1), found(tmp_path / "2", 1), found(tmp_path / "3", 2)
    assert one == same
    changed = {name for name in one if one[name] != other[name]}
    assert changed == {"training images", "validation images", "test images"}


@pytest.mark.parametrize("stems", [("mnist_train", "mnist_test"), ("train0", "test0"), ("my-train-0", "my-test-0")])
def test_shards_whose_names_contain_a_split(tmp_path, stems):
    write_parquet(tmp_path)
    for split, stem in zip(("train", "test"), stems, strict=True):
        (tmp_path / f"{split}-00000-of-00001.parquet").rename(tmp_path / f"{stem}.parquet")
    data = load_data(str(tmp_path), LoaderConfig(val_fraction=0.25))
    assert [len(part) for part in (data.train, data.val, data.test)] == [9, 3, 12]
    (tmp_path / f"{stems[0]}.parquet").rename(tmp_path / "train_and_test.parquet")
    refused("names several splits", tmp_path)


def test_parquet_columns_can_be_named(tmp_path):
    write_parquet(tmp_path, label="kind", named=False)
    refused("no label column", tmp_path)
    data = load_data(str(tmp_path), LoaderConfig(label_column="kind", val_fraction=0.25))
    assert data.class_names == ("a", "b", "c")
    refused("no column 'sort'; it has picture, kind, other", tmp_path, label_column="sort")


def test_the_images_that_pandas_writes_are_a_column_of_images(tmp_path):
    pandas = pytest.importorskip("pandas")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png")
    rows = {"image": [{"bytes": file.getvalue(), "path": f"{n}.png"} for n in range(20)], "kind": list("ab") * 10}
    pandas.DataFrame(rows).to_parquet(tmp_path / "train.parquet")
    assert len(load_data(str(tmp_path), LoaderConfig(labels="none")).train) > 0
    data = load_data(str(tmp_path), LoaderConfig(label_column="kind", val_fraction=0.2))
    assert data.train.read(0).size == (8, 8)
    assert data.class_names == ("a", "b")


def test_plain_labels_are_numbered_alike_in_all_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    picture = Image.new("RGB", (8, 8))
    for split, labels in (("train", [10, 2, 9, 2] * 5), ("test", [9, 10])):
        columns = {"picture": [picture] * len(labels), "kind": labels}
        features = datasets.Features({"picture": datasets.Image(), "kind": datasets.Value("int64")})
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{split}.parquet")
    data = load_data(str(tmp_path), LoaderConfig(label_column="kind", val_fraction=0.2))
    assert data.class_names == ("2", "9", "10")
    assert list(data.test.labels) == [1, 2]


def test_labels_out_of_range(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    for split, labels in (("train", [0, 1] * 10), ("test", [-1, -1])):
        columns = {"picture": [Image.new("RGB", (8, 8))] * len(labels), "label": labels}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{split}.parquet")
    data = load_data(str(tmp_path), LoaderConfig(val_fraction=0.2))
    assert [len(part) for part in (data.train, data.val, data.test)] == [13, 3, 4]
    columns = {"picture": [Image.new("RGB", (8, 8))] * 2, "label": [1, -1]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "test.parquet")
    refused("image 1 of the test split .* has the label -1", tmp_path)


def test_a_broken_shard_is_answered(tmp_path):
    write_parquet(tmp_path)
    shard = tmp_path / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-300])
    refused("cannot be read", tmp_path)


def write_cifar10(root):
    """The layout torchvision leaves on disk, with its check sums made to fit by its own loader's meta file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {"data": rng.integers(0, 255, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))
    return root


def test_torchvision_sets(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    # The files here are ours, so their check sums are not the published ones.
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    for field in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, field, [[name, None] for name, _ in getattr(CIFAR10, field)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    data = load_data("torch/cifar10", LoaderConfig(root=str(write_cifar10(tmp_path)), val_fraction=0.2))
    assert (data.num_classes, data.channels, data.size) == (10, 3, (32, 32))
    assert [len(part) for part in (data.train, data.val, data.test)] == [40, 10, 10]
    assert data.class_names[3] == "c3"


def test_unknown_torchvision_set(tmp_path):
    refused("Unknown torchvision dataset", "torch/cifar1000", root=str(tmp_path))
    refused("could not be downloaded|not found", "torch/cifar10", root=str(tmp_path), download=False)


def test_what_a_name_or_a_schema_leaves_open_is_said(tmp_path):
    datasets = pytest.importorskip("datasets")
    refused("data is empty", " ")
    images = [Image.fromarray(np.full((8, 8), i, np.uint8)) for i in range(12)]
    kinds = {"coarse": datasets.ClassLabel(names=["x", "y"]), "fine": datasets.ClassLabel(names=["a", "b"])}
    values = {"image": images, "coarse": [i % 2 for i in range(12)], "fine": [i // 6 for i in range(12)]}
    table = datasets.Dataset.from_dict(values, features=datasets.Features({"image": datasets.Image(), **kinds}))
    table.to_parquet(tmp_path / "train.parquet")
    data = load_data(str(tmp_path), LoaderConfig(val_fraction=0.25))
    assert data.class_names == ("x", "y")
    assert "left out: the classes in 'fine'; those in 'coarse' are read (--loader.label-column)" in data.about
    folder = write_folder(tmp_path / "folder", splits=("train", "test"))
    (folder / "val").mkdir()
    assert "left out: the folder 'val', which holds no images" in load_data(str(folder), LoaderConfig()).about


@pytest.mark.parametrize(("kind", "labels"), [("float64", [0.0, 1.0, float("nan")]), ("string", ["a", "b", " "])])
def test_labels_that_name_no_class_are_refused(tmp_path, kind, labels):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    images = [Image.fromarray(np.full((8, 8), i, np.uint8)) for i in range(12)]
    table = datasets.Dataset.from_dict({"image": images, "label": labels * 4}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    refused("row 2 of the train split has the label .*, which names no class", tmp_path, label_column="label")
