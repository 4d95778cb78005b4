"""Data sets of the Hugging Face hub, from a folder in the layout of the hub's cache."""

import huggingface_hub.constants
import pytest

from crossdistill import UserError
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from tests.data.pictures import fill
from tests.data.test_tar_shards import samples, write


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "a" * 40
    stored = tmp_path / "datasets--someone--birds"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    return stored / "snapshots" / commit


def load(name, **config):
    return load_data(name, LoaderConfig(download=False, **config))


def test_a_set_of_the_hub_is_read_from_its_cache(snapshot):
    fill(snapshot / "train", count=20)
    data = load("hfds/someone/birds")
    assert (data.name, data.class_names) == ("hfds/someone/birds", ("ant", "bee"))
    assert data.files is not None
    # One folder of a set with several, and a revision.
    write(snapshot / "small" / "train-0.tar", *samples(range(20)))
    assert load("hfds/someone/birds/small").class_names == ("0", "1")
    assert load(f"hfds/someone/birds/small@{'a' * 40}").class_names == ("0", "1")


def test_a_set_that_is_not_there_is_refused(snapshot):
    with pytest.raises(UserError, match=r"'hfds/someone/fish' cannot be had from the hub \(loader.download is false\)"):
        load("hfds/someone/fish")
    fill(snapshot / "train", count=20)
    with pytest.raises(UserError, match="the set has no folder 'large'"):
        load("hfds/someone/birds/large")
    with pytest.raises(UserError, match="'hfds/' cannot be had"):
        load("hfds/")
