import os
import shutil

import numpy as np
import pytest
from PIL import Image

from crossdistill import UserError
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.datasets import base_of
from tests.data.pictures import fill, noise, put


def load(root, **config):
    return load_data(str(root), LoaderConfig(**config))


def refused(match, root, **config):
    with pytest.raises(UserError, match=match) as error:
        load(root, **config)
    assert "\n" not in str(error.value)


def keys(data, *roles):
    found = []
    for role in roles or ("train", "val", "test"):
        base, chosen = base_of(getattr(data, role))
        found += [base.keys[i] for i in chosen]
    return sorted(found)


def test_hidden_files_and_folders_are_no_data(tmp_path):
    fill(tmp_path)
    for path in (".ipynb_checkpoints/0.jpg", "ant/.ipynb_checkpoints/0-copy.jpg", "ant/.0.png", "__MACOSX/ant/0.png"):
        put(noise(5), tmp_path / path)
    data = load(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert len(keys(data)) == 20
    assert "left out: 4 hidden files and folders" in data.about


def test_the_twins_of_macos_are_named(tmp_path):
    (fill(tmp_path) / "ant" / "._1.png").write_bytes(b"\0\5\x16\7")
    refused(r"ant/\._1\.png' cannot be read as an image: it is what macOS stores", tmp_path)
    data = load(tmp_path, on_bad_image="skip")
    assert len(keys(data)) == 20
    assert data.unreadable == 1


def test_all_types_are_read_and_others_counted(tmp_path):
    suffixes = ("jpg", "JPEG", "png", "webp", "bmp", "tif", "gif", "ppm", "jp2")
    for name in ("ant", "bee"):
        for i, suffix in enumerate(suffixes):
            put(noise(i), tmp_path / name / f"{i}.{suffix}")
    for name in ("labels.csv", "ant/Thumbs.db", "ant/README", "bee/clip.mp4", "bee/clip2.mp4"):
        (tmp_path / name).write_bytes(b"x")
    data = load(tmp_path)
    assert len(keys(data)) == 2 * len(suffixes)
    assert any("5 files of other types (.mp4 2, " in line and "no suffix 1" in line for line in data.about)
    assert ".webp 2" in data.about[0]


@pytest.mark.parametrize("name", ["train", "test", "val", "Validation"])
def test_a_class_may_be_called_like_a_split(tmp_path, name):
    fill(tmp_path, ("bus", "car", name))
    assert load(tmp_path).class_names == tuple(sorted(("bus", "car", name)))
    put(noise(3), tmp_path / name / "older" / "x.png")
    assert f"{name}/older/x.png" in keys(load(tmp_path))


def test_names_of_splits_alone_are_not_taken_for_classes(tmp_path):
    fill(tmp_path, ("train", "test"))
    refused("named as splits, but hold no class folders; if they are classes, give --loader.train-dir", tmp_path)
    assert load(tmp_path, train_dir=".").class_names == ("test", "train")


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "validation", "Testing"),
        ("train_set", "valid", "test-set"),
        ("TrainData", "dev", "eval"),
    ],
)
def test_splits_in_usual_spellings(tmp_path, train, val, test):
    for split, count in ((train, 6), (val, 3), (test, 4)):
        fill(tmp_path / split, count=count)
    data = load(tmp_path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 6, 8]


def test_splits_of_other_names_are_given(tmp_path):
    for split in ("learn", "exam"):
        fill(tmp_path / split)
    refused(r"have the same folders \('ant', 'bee', ...\) in them: if they are splits, name them", tmp_path)
    data = load(tmp_path, train_dir="learn", test_dir="exam", val_fraction=0.2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 4, 20]
    assert load(tmp_path, train_dir=".").class_names == ("exam", "learn")
    refused("must be a folder in", tmp_path, train_dir="nothing")
    refused("must be a folder in", tmp_path, train_dir="..")
    refused("need loader.train_dir", tmp_path, test_dir="exam")
    refused("are the same folder", tmp_path, train_dir="learn", test_dir="learn")
    inside = fill(tmp_path / "inside")
    fill(inside / "held", count=3)
    data = load(inside, train_dir=".", test_dir="held")
    assert data.class_names == ("ant", "bee")
    assert len(data.test) == 6


def test_layouts_that_are_not_clear_are_refused(tmp_path):
    for name in ("ant", "bee"):
        fill(tmp_path / "inner" / name, ("train", "test"), 3)
    refused("the splits .* are inside the class folders", tmp_path / "inner")
    for name in ("val", "valid", "train"):
        fill(tmp_path / "twice" / name)
    refused("'val' and 'valid', which both name the val split", tmp_path / "twice")
    fill(tmp_path / "beside" / "train")
    fill(tmp_path / "beside", ("extra",))
    refused("'train', the name of a split, beside 'extra'", tmp_path / "beside")
    assert load(tmp_path / "beside", train_dir="train").class_names == ("ant", "bee")
    fill(tmp_path / "deep" / "set")
    refused(r"1 class folder; .* one level deeper\? Then give --data .*deep/set", tmp_path / "deep")


def test_a_test_split_without_class_folders_is_left_out_and_said(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path, ("test",))
    fill(tmp_path / "val", count=4)
    data = load(tmp_path)
    assert len(data.test) == 8
    assert "left out: 10 images outside of the splits (in test)" in data.about


def test_folders_in_class_folders_belong_to_the_class(tmp_path):
    for i, place in enumerate(("ant", "ant/2019", "ant/2020/may", "bee/x", "bee/y", "bee/y/z")):
        for k in range(3):
            put(noise(10 * i + k), tmp_path / place / f"{k}.png")
    data = load(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert len(keys(data)) == 18
    assert np.bincount(data.train.labels).min() == 7


def test_classes_are_sorted_by_code_point(tmp_path):
    names = (
        "class10",
        "class2",
        "class1",
        "A",
        "a",
        "B",
        "1",
        "01",
        "10",
        "2",
        "Äpfel",
        "äpfel",
        "_x",
        "[red]",
        "日本",
    )
    fill(tmp_path, names, count=3)
    assert load(tmp_path).class_names == tuple(sorted(names))


def test_names_that_are_not_utf8(tmp_path):
    fill(tmp_path)
    put(noise(1), tmp_path / "ant" / "plain.png")
    os.rename(os.fsencode(tmp_path / "ant" / "plain.png"), os.fsencode(tmp_path / "ant") + b"/caf\xe9.png")
    data = load(tmp_path)
    index = keys(data).index("ant/caf\udce9.png")
    assert index >= 0
    assert "\\udce9" in repr(data.files.images)
    os.rename(os.fsencode(tmp_path / "bee"), os.fsencode(tmp_path) + b"/b\xe9e")
    refused(r"class folder b'b\\xe9e' is not UTF-8", tmp_path)


def test_links_pipes_and_loops(tmp_path):
    fill(tmp_path)
    shutil.move(tmp_path / "bee", tmp_path.parent / "far away")
    (tmp_path / "bee").symlink_to(tmp_path.parent / "far away")
    (tmp_path / "ant" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    data = load(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert "left out: 2 special files" in data.about
    (tmp_path / "ant" / "gone.png").symlink_to(tmp_path / "nothing.png")
    refused(r"ant/gone\.png' cannot be read as an image: No such file", tmp_path)


def test_a_stray_parquet_file_changes_nothing(tmp_path):
    fill(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"x")
    data = load(tmp_path)
    assert data.class_names == ("ant", "bee")
    assert any("parquet files (metadata.parquet" in line for line in data.about)
    (tmp_path / "train-0.parquet").write_bytes(b"x")
    refused("holds parquet shards .* and class folders with images", tmp_path)


def test_bad_images_are_skipped_when_asked(tmp_path):
    fill(tmp_path, count=12)
    whole = (tmp_path / "ant" / "0.png").read_bytes()
    (tmp_path / "ant" / "bad.jpg").write_bytes(b"junk")
    (tmp_path / "bee" / "cut.png").write_bytes(whole[:-300])
    put(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "bee" / "float.tif")
    refused(r"ant/bad\.jpg' \(and 1 more\) cannot be read as an image: .*--loader.on-bad-image skip", tmp_path)
    data = load(tmp_path, on_bad_image="skip")
    assert len(keys(data)) == 24
    assert data.unreadable == 3
    for name in ("ant/bad.jpg", "bee/cut.png", "bee/float.tif"):
        assert any(name in line and line.startswith("left out") for line in data.about)


def test_channels_and_size_are_those_of_all_files(tmp_path):
    for name in ("ant", "bee"):
        for i in range(40):
            put(noise(i, channels=1), tmp_path / name / f"{i:02}.png")
    assert load(tmp_path).channels == 1
    put(noise(1, 70, 20), tmp_path / "bee" / "17b.png")
    data = load(tmp_path)
    assert (data.channels, data.size) == (3, (70, 20))
    assert any("80 of 81 images are grey, the others colour; all are read as colour" in line for line in data.about)
    assert any("1 of 81 images are larger than 64 px" in line for line in data.about)
    assert load(tmp_path, in_chans=1).channels == 1


def test_copies_and_small_classes_are_said(tmp_path):
    fill(tmp_path, ("ant", "bee", "cow"), 20)
    for i in range(20):
        shutil.copy(tmp_path / "ant" / f"{i}.png", tmp_path / "ant" / f"copy-{i}.png")
    shutil.copy(tmp_path / "ant" / "0.png", tmp_path / "bee" / "same.png")
    shutil.rmtree(tmp_path / "cow")
    fill(tmp_path, ("cow",), 4)
    about = "\n".join(load(tmp_path).about)
    assert "held-out images that are copies of training images" in about
    assert "copies of one image in several classes" in about
    assert "fewer than 5 training images: 'cow' (2)" in about


def test_a_class_without_training_images_is_named(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "train" / "cow").mkdir()
    (tmp_path / "train" / "cow" / "a.heif").write_bytes(b"x")
    refused(r"class folder 'cow' .* holds no images \(left out: 1 file of other types \(.heif 1\)\)", tmp_path)


def test_paths_with_markup(tmp_path, capsys):
    from crossdistill.cli import main

    fill(tmp_path / "[bold]x", ("[red]a", "<b>&amp;"), 4)
    assert main(["check", str(tmp_path / "[bold]x")]) == 0
    assert "data [bold]x: 2 classes (fewest training images: '<b>&amp;', 2)" in capsys.readouterr().out


def test_folders_that_are_splits_of_other_names_are_refused(tmp_path):
    # As archives hold them, with the folder's name twice.
    for name in ("seg_train", "seg_test"):
        fill(tmp_path / "twice" / name / name)
    refused(
        "give --loader.train-dir seg_train/seg_train --loader.test-dir seg_test/seg_test",
        tmp_path / "twice",
    )
    config = LoaderConfig(train_dir="seg_train/seg_train", test_dir="seg_test/seg_test")
    assert load_data(str(tmp_path / "twice"), config).class_names == ("ant", "bee")
    fill(tmp_path / "folds" / "fold1", ("ant", "bee", "cow"))
    fill(tmp_path / "folds" / "fold2", ("ant", "bee"))
    refused("'fold1' and 'fold2' in .* have the same folders", tmp_path / "folds")
    for split in ("train", "test"):
        for year in ("2021", "2022"):
            fill(tmp_path / "years" / split / year)
    refused(r"'2021' and '2022' in .*train' have the same folders", tmp_path / "years")
    fill(tmp_path / "mixed" / "ant", ("train", "test"))
    fill(tmp_path / "mixed" / "bee", ("train",))
    refused("are inside the class folders", tmp_path / "mixed")


def test_a_class_that_no_image_is_left_of_is_refused(tmp_path):
    refused("loader.max_train 2 leaves no image of class", fill(tmp_path, ("ant", "bee", "cow")), max_train=2)


def test_hidden_folders_are_no_splits_and_a_link_to_itself_is_counted(tmp_path):
    fill(tmp_path / "a", count=10)
    fill(tmp_path / "a" / ".cache" / "train", count=10)
    with pytest.raises(UserError, match="hidden folders, and those of a system, are not read"):
        load_data(str(tmp_path / "a"), LoaderConfig(train_dir=".cache/train"))
    (tmp_path / "a" / "ant" / "loop").symlink_to(tmp_path / "a" / "ant" / "loop")
    assert any("1 special file" in line for line in load_data(str(tmp_path / "a"), LoaderConfig()).about)


def test_long_images_among_others_are_said(tmp_path):
    """One rule for all: squashed where at least half are long, whatever their direction."""
    for number in range(24):
        put(
            noise(number, 80, 300) if number % 2 else noise(number, 300, 80),
            tmp_path / "mixed" / "ab"[number % 3 > 0] / f"{number}.png",
        )
        shape = (80, 80) if number % 6 else (80, 300)
        put(noise(number, *shape), tmp_path / "few" / "ab"[number % 2] / f"{number}.png")
    mixed, few = (load_data(str(tmp_path / name), LoaderConfig()) for name in ("mixed", "few"))
    assert mixed.long
    assert not few.long
    assert any("4 of 24 images are more than twice as long" in line and "cut off" in line for line in few.about)


def test_sixteen_bit_images_that_use_few_of_their_values_are_said(tmp_path):
    for number in range(24):
        values = noise(number, 16, 16, 1).astype(np.uint16) * 16
        put(Image.fromarray(values), tmp_path / "ab"[number % 2] / f"{number}.png")
    assert any("scale them to the whole range first" in line for line in load_data(str(tmp_path), LoaderConfig()).about)


def test_a_folder_with_the_name_of_a_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "digits")
    fill(tmp_path / "torch" / "cifar10")
    data = load_data("digits", LoaderConfig())
    assert any("'./digits'" in line for line in data.about)
    assert load_data("./digits", LoaderConfig()).class_names == ("ant", "bee")
    with pytest.raises(UserError, match=r"give './torch/cifar10' for the folder"):
        load_data("torch/cifar10", LoaderConfig())
    with pytest.raises(UserError, match="give the folder itself as --data"):
        load_data("torch/image_folder", LoaderConfig(root=str(tmp_path / "digits")))
