import json

import pytest

from crossdistill import UserError
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.datasets import base_of
from tests.commands.running import TINY, run
from tests.data.pictures import noise, put


@pytest.fixture
def images(tmp_path):
    for number in range(24):
        put(noise(number), tmp_path / "all" / f"{number}.png")
    return [f"all/{number}.png" for number in range(24)]


def write(file, *lines):
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def load(file, **config):
    return load_data(file, LoaderConfig(**config))


def by_path(images):
    base, chosen = base_of(images)
    return {base.keys[index]: label for index, label in zip(chosen, images.labels, strict=True)}


def test_a_csv_file_states_paths_labels_and_splits(tmp_path, images):
    splits = ["train"] * 16 + ["valid"] * 4 + ["Test"] * 4
    lines = [
        f"{('dog', 'cat')[i % 2]},{path},{split}" for i, (path, split) in enumerate(zip(images, splits, strict=True))
    ]
    data = load(write(tmp_path / "list.csv", "label,path,split", *lines))
    assert data.class_names == ("cat", "dog")
    assert by_path(data.train) == {path: 1 - i % 2 for i, path in enumerate(images[:16])}
    assert list(by_path(data.val)) == images[16:20]
    assert list(by_path(data.test)) == images[20:]
    assert data.name == "list"
    assert data.files is not None


def test_numbers_are_classes_by_value_and_columns_may_have_any_name(tmp_path, images):
    lines = [f"{path}\t{(2, 10, 9)[i % 3]}" for i, path in enumerate(images)]
    file = write(tmp_path / "list.tsv", "where\twhat", *lines)
    data = load(file, image_column="where", label_column="what")
    assert data.class_names == ("2", "9", "10")
    assert all(label == (0, 2, 1)[int(path[4:-4]) % 3] for path, label in by_path(data.train).items())
    with pytest.raises(UserError, match="image-column"):
        load(file)


def test_a_text_file_of_paths_has_no_labels(tmp_path, images):
    (tmp_path / "all" / "a b, c.png").write_bytes((tmp_path / images[0]).read_bytes())
    file = write(tmp_path / "list.txt", *images, "", "all/a b, c.png")
    data = load(file, labels="none")
    assert data.class_names == ()
    parts = [by_path(part) for part in (data.train, data.val, data.test)]
    assert sum(len(part) for part in parts) == 25
    assert any("all/a b, c.png" in part for part in parts)
    with pytest.raises(UserError, match=r"states no labels.*--loader\.labels none"):
        load(file)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label", "all/0.png,a", "all/1.png,"], "line 3 of .* no value in the column 'label'"),
        (["path,label", "all/0.png,a", "all/./0.png,b"], "lists 'all/0.png' twice, in lines 2 and 3"),
        (["path,label", "all/0.png,a", "all/1.png,a"], "1 class"),
        (["path,label,split", "all/0.png,a,train", "all/1.png,b,train", "all/2.png,c,test"], "the label 'c'"),
        (["path,label,split", "all/0.png,a,first"], "the split 'first'"),
        (["path,colour", "all/0.png,a"], "--loader.label-column"),
        (["path,label"], "lists no images"),
        (["path,label,split", "all/0.png,a,test"], "no images of the training split"),
        (["path,label", "all/0.png,a,b"], "line 2 of .* more values than the first line has columns"),
        (["path,label", "all/0.png,a", "all/gone.png,b", *(f"all/{i}.png,b" for i in range(1, 9))], "gone.png"),
    ],
)
def test_lists_that_are_not_clear_are_refused(tmp_path, images, lines, message):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "list.csv", *lines))


@pytest.mark.parametrize("behind", ["\tcat", " 3", ",cat", ", cat", " tabby cat", ",3,train"])
@pytest.mark.parametrize("labels", ["none", "classes"])
def test_labels_in_a_text_file_are_refused_with_what_to_write(tmp_path, images, behind, labels):
    file = write(tmp_path / "list.txt", *images[:3], *(f"{path}{behind}" for path in images[3:]))
    with pytest.raises(UserError, match=r"line 4 of .*behind the path of an image.*first line is path,label"):
        load(file, labels=labels)


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    for place, name in enumerate(("a\u2028b", "a\x85b", "c", "d")):
        put(noise(place), tmp_path / f"{name}.png")
    rows = [f'"{name}.png",{label}' for name, label in zip(("a\u2028b", "a\x85b", "c", "d"), "xyxy", strict=True)]
    data = load_data(str(write(tmp_path / "list.csv", "path,label", *rows)), LoaderConfig(labels="none"))
    assert sum(len(part) for part in (data.train, data.val, data.test)) == 4


def test_a_list_is_trained_on_and_resumed_by_the_command_line(tmp_path, capsys, images):
    file = write(tmp_path / "list.csv", "path,label", *(f"{path},{i % 2}" for i, path in enumerate(images)))
    words = [*TINY, "--data", file, "--loader.batch-size", "8", "--method", "none", "--epochs", "1"]
    code, _, err = run(capsys, "fit", *words, "--out", tmp_path / "run")
    assert code == 0, err
    assert "list" in json.loads((tmp_path / "run" / "metrics.json").read_text())["data"]
    code, _, err = run(capsys, "eval", tmp_path / "run", "--json")
    assert code == 0, err
    code, _, err = run(capsys, "check", file)
    assert code == 0, err


def test_an_unclosed_quote_does_not_swallow_lines(tmp_path, images):
    lines = [f"{path},{'ab'[i % 2]}" for i, path in enumerate(images)]
    lines[10] = f'{images[10]},"a'
    with pytest.raises(UserError, match=r"spans several lines|line .* cannot be read"):
        load(write(tmp_path / "list.csv", "path,label", *lines))
    lines[10] = f'{images[10]},"a"b'
    with pytest.raises(UserError, match=r"line 12 of .* cannot be read"):
        load(write(tmp_path / "list.csv", "path,label", *lines))


def test_columns_that_could_be_meant_are_named(tmp_path, images):
    lines = [f"{path},{'xy'[i % 2]},{'ab'[i % 2]}" for i, path in enumerate(images)]
    data = load(write(tmp_path / "list.csv", "path,category,label", *lines))
    assert data.class_names == ("a", "b")
    assert any("the column 'category'; labels are those in 'label'" in line for line in data.about)
    with pytest.raises(UserError, match="names the column 'label' twice"):
        load(write(tmp_path / "list.csv", "path,label,label", *lines))


def test_images_that_were_relabelled_are_said(tmp_path, images):
    lines = [f"{path},{'ab'[i % 2]},{'train' if i < 16 else 'test'}" for i, path in enumerate(images)]
    before = load(write(tmp_path / "list.csv", "path,label,split", *lines))
    lines[20] = f"{images[20]},b,test"
    now = load_data(write(tmp_path / "list.csv", "path,label,split", *lines), LoaderConfig(), before.files)
    assert now.changes.relabelled == (images[20],)
    assert any("had another class when it began" in phrase for phrase in now.changes.phrases())


def test_the_column_named_split_states_the_splits(tmp_path, images):
    lines = [f"{path},train,{'ab'[i % 2]},{'train' if i < 16 else 'test'}" for i, path in enumerate(images)]
    data = load(write(tmp_path / "list.csv", "path,set,label,split", *lines))
    assert list(by_path(data.test)) == images[16:]
    assert any("the column 'set'; splits are those in 'split'" in line for line in data.about)
    with pytest.raises(UserError, match="separate columns by commas"):
        load(write(tmp_path / "list.csv", "path;label", *[f"{path};a" for path in images]))


def test_whole_numbers_that_pandas_wrote_with_a_point_are_classes_by_value(tmp_path, images):
    """It does so where a value is missing, and writes nan for that."""
    lines = [f"{path},{(2, 10, 9)[i % 3]}.0" for i, path in enumerate(images)]
    data = load(write(tmp_path / "list.csv", "path,label", *lines))
    assert data.class_names == ("2", "9", "10")
    with pytest.raises(UserError, match=r"line 5 of .* has no label \(nan\): leave its image out"):
        load(write(tmp_path / "list.csv", "path,label", *lines[:3], f"{images[3]},nan", *lines[4:]))
    words = [f"{path},{('nan', '1.0', 'pita')[i % 3]}" for i, path in enumerate(images)]
    assert load(write(tmp_path / "list.csv", "path,label", *words)).class_names == ("1.0", "nan", "pita")


def test_a_label_that_stands_for_none_is_no_class(tmp_path, images):
    for others in (("dog", "cat"), ("-2", "1")):
        lines = [f"{path},{('-1', *others)[i % 3]}" for i, path in enumerate(images)]
        with pytest.raises(UserError, match="the label -1, which stands for no label"):
            load(write(tmp_path / "list.csv", "path,label", *lines))


def test_tabs_in_a_file_that_is_named_csv_are_named(tmp_path, images):
    with pytest.raises(UserError, match=r"end the name of a file with tabs in \.tsv"):
        load(write(tmp_path / "list.csv", "path\tlabel", *[f"{path}\tx" for path in images]))
