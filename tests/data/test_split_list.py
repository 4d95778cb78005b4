import shutil

import numpy as np
import pytest

from crossdistill import UserError
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.datasets import base_of
from crossdistill.data.split_list import SPLIT_NAME, read_split_list, write_split_list
from crossdistill.data.trained import TrainedOn
from tests.data.pictures import fill, noise, put

ROLES = ("train", "val", "test")


def load(root, listed=None, **config):
    return load_data(str(root), LoaderConfig(**config), listed)


def files(data):
    found = {}
    for role in ROLES:
        base, chosen = base_of(getattr(data, role))
        found[role] = {base.keys[i] for i in chosen}
    return found


def test_added_files_move_few_others(tmp_path):
    before = files(load(fill(tmp_path, count=100)))
    for i in range(10):
        put(noise(10_000 + i), tmp_path / "ant" / f"0-first-{i}.png")
    after = files(load(tmp_path))
    moved = sum(len(before[role] - after[role]) for role in ROLES)
    assert moved <= 4
    # Another class is not touched at all.
    for role in ROLES:
        assert {k for k in before[role] if k.startswith("bee")} == {k for k in after[role] if k.startswith("bee")}


def test_every_class_is_held_out_as_far_as_its_images_allow(tmp_path):
    for name, count in (("a", 100), ("b", 10), ("c", 3), ("d", 2), ("e", 1)):
        fill(tmp_path, (name,), count)
    data = load(tmp_path)
    counts = [np.bincount(getattr(data, role).labels, minlength=5).tolist() for role in ROLES]
    assert counts == [[81, 8, 1, 1, 1], [9, 1, 1, 0, 0], [10, 1, 1, 1, 0]]
    shutil.rmtree(tmp_path / "c")
    without = files(load(tmp_path))
    assert all(without[role] == {k for k in files(data)[role] if k[0] != "c"} for role in ROLES)


def test_the_division_does_not_depend_on_where_the_data_is(tmp_path):
    before = files(load(fill(tmp_path / "here", count=30)))
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    assert files(load(tmp_path / "there" / "deeper")) == before
    assert files(load(tmp_path / "here", split_seed=1)) != before


def test_a_list_decides_whatever_came_went_or_changed(tmp_path):
    first = load(fill(tmp_path, ("bee", "cow"), 30), max_train=40)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SPLIT_NAME).write_text(write_split_list(first.files), encoding="utf-8")
    listed = read_split_list(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    assert listed == first.files
    assert len(listed.images["unused"]) == 8
    same = load(tmp_path, listed)
    assert files(same) == files(first)
    assert same.changes.phrases() == []
    # A class that sorts first, two files in an old class, one away, one other.
    fill(tmp_path, ("ant",), 5)
    put(noise(77), tmp_path / "bee" / "00.png")
    gone, changed = sorted(files(first)["test"])[:2]
    (tmp_path / gone).unlink()
    put(noise(78), tmp_path / changed)
    now = load(tmp_path, listed)
    assert now.class_names == ("bee", "cow")
    assert (len(now.changes.came), now.changes.gone, now.changes.changed) == (6, (gone,), (changed,))
    assert files(now)["train"] == files(first)["train"]
    assert files(now)["test"] == files(first)["test"] - {gone}
    base, chosen = base_of(now.train)
    assert [now.class_names[k] for k in now.train.labels] == [base.keys[i].split("/")[0] for i in chosen]
    assert len(now.changes.phrases()) == 3


def test_what_was_trained_is_found_in_other_data(tmp_path):
    first = load(fill(tmp_path / "one", count=30))
    trained = sorted(files(first)["train"])[0]
    other = tmp_path / "two"
    for i, name in enumerate(("ant/1.png", "ant/2.png", "ant/3.png", "bee/new.png", "bee/new2.png")):
        put(noise(990 + i), other / name)
    shutil.copy(tmp_path / "one" / trained, other / "bee" / "renamed.png")
    base = base_of(load(other).train)[0]
    numbers = TrainedOn(first.files, frozenset()).find(base)
    assert [base.keys[i] for i in numbers] == ["bee/renamed.png"]


def test_damaged_lists_are_named(tmp_path):
    assert read_split_list(tmp_path) is None
    for text in ("", "[]", "{}", '{"class_names": 3, "contents": true, "images": {}}'):
        (tmp_path / SPLIT_NAME).write_text(text)
        with pytest.raises(UserError, match=r"split\.json' is damaged"):
            read_split_list(tmp_path)
    listed = load(fill(tmp_path / "a"), None).files
    shutil.rmtree(tmp_path / "a" / "ant")
    fill(tmp_path / "a", ("cow",), 9)
    shutil.rmtree(tmp_path / "a" / "bee")
    fill(tmp_path / "a", ("dog",), 9)
    with pytest.raises(UserError, match="none of the train images"):
        load(tmp_path / "a", listed)
    with pytest.raises(UserError, match="is not a folder of image files"):
        load("digits", listed)


def test_held_out_files_that_become_training_images_are_not_scored(tmp_path):
    first = load(fill(tmp_path, ("bee", "cow"), 30))
    train, test = (sorted(files(first)[role]) for role in ("train", "test"))
    shutil.copy(tmp_path / train[0], tmp_path / test[0])
    now = load(tmp_path, first.files)
    assert now.changes.copied == (test[0],)
    assert files(now)["test"] == files(first)["test"] - {test[0]}
    assert f"1 image ({test[0]}) held out by the run now have the content" in " ".join(now.changes.phrases())
