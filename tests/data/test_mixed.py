from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from crossdistill import BackboneOutput, UserError, create_backbone, create_distiller
from crossdistill.config import LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.mixed import Joined, MixedSampler, labelled_part
from crossdistill.tasks import Classification
from crossdistill.training.inputs import data_digests
from tests.commands.running import TINY, run
from tests.data.pictures import noise, put
from tests.data.test_tar_shards import write


def folders(root, labelled=20, more=33):
    for number in range(labelled):
        put(noise(number), root / "labelled" / "ab"[number % 2] / f"{number}.png")
    for number in range(more):
        put(noise(1000 + number), root / "more" / "deep" / f"{number}.png")
    return str(root / "labelled"), str(root / "more")


def test_all_images_of_the_other_set_are_joined_without_labels(tmp_path):
    labelled, more = folders(tmp_path)
    plain = load_data(labelled, LoaderConfig())
    data = load_data(labelled, LoaderConfig(unlabelled=more))
    assert isinstance(data.train, Joined)
    assert len(data.train) == len(plain.train) + 33
    assert data.train.labels == [*plain.train.labels, *[-1] * 33]
    assert data.class_names == plain.class_names
    assert labelled_part(data.train).labels == plain.train.labels
    assert (data.val.labels, data.test.labels) == (plain.val.labels, plain.test.labels)
    seen = {data.train.read(index).tobytes() for index in range(len(plain.train), len(data.train))}
    assert seen == {noise(1000 + number).tobytes() for number in range(33)}
    for index in range(len(plain.train)):
        assert data.train.read(index).tobytes() == plain.train.read(index).tobytes()
    assert any("33 images without labels" in line for line in data.about)


def test_copies_of_held_out_images_are_left_out(tmp_path):
    labelled, _ = folders(tmp_path)
    plain = load_data(labelled, LoaderConfig())
    data = load_data(labelled, LoaderConfig(unlabelled=labelled))
    held_out = len(plain.val) + len(plain.test)
    assert len(data.train) == len(plain.train) * 2
    assert any(f"{held_out} more are left out" in line for line in data.about)


@pytest.mark.parametrize("world", [1, 2])
def test_every_batch_has_its_part_of_labels(world):
    size, labelled = 50, 7
    shares = [MixedSampler(labelled, 0.25, size, 8, 3, rank, world) for rank in range(world)]
    assert len(shares[0]) == shares[0].batches * 8
    seen = []
    for epoch in range(2):
        for sampler in shares:
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert len(keys) == len(sampler)
            for start in range(0, len(keys), 8):
                assert sum(index < labelled for index, _ in keys[start : start + 8]) == 2
            seen += [(epoch, *key) for key in keys]
    assert len(set(seen)) == len(seen)  # no view of an image comes twice
    free = [index for epoch, index, _ in seen if epoch == 0 and index >= labelled]
    assert len(free) == len(set(free)) == shares[0].batches * 6 * world
    known = Counter(index for epoch, index, _ in seen if epoch == 0 and index < labelled)
    assert max(known.values()) - min(known.values()) <= 1
    # A resume continues in the middle of an epoch.
    whole = list(shares[0])
    shares[0].start_batch = 2
    assert list(shares[0]) == whole[16:]
    limited = MixedSampler(labelled, 0.25, size, 8, 3, 0, 1, 2)
    assert {view for _, view in limited} <= {0, 1}


def test_the_task_loss_is_that_of_the_labelled_images():
    logits, targets = torch.randn(6, 3), torch.tensor([0, -1, 2, -1, -1, 1])
    output = BackboneOutput(logits, torch.zeros(6, 4))
    loss = Classification(0.1, partly=True).loss(output, targets)
    known = targets >= 0
    torch.testing.assert_close(loss, F.cross_entropy(logits[known], targets[known], label_smoothing=0.1))


def test_methods_that_read_labels_are_refused():
    student, teacher = (create_backbone("test_resnet", 3, img_size=32) for _ in range(2))
    with pytest.raises(UserError, match="reads the label"):
        create_distiller("dkd", student=student, teacher=teacher, partly=True)


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_a_run_on_few_labels(tmp_path, capsys, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    labelled, more = folders(tmp_path)
    words = [
        *TINY,
        "--teacher",
        "test_resnet",
        "--data",
        labelled,
        "--loader.unlabelled",
        more,
        "--loader.batch-size",
        "8",
    ]
    words += ["--trust-teacher", "true", "--cache", cache]
    code, _, err = run(capsys, "fit", *words, "--method", "rsd", "--out", "run")
    assert code == 0, err
    assert "33 images without labels" in err
    assert f"unlabelled: {more}" in (tmp_path / "run" / "config.yaml").read_text()
    code, _, err = run(capsys, "eval", "run", "--knn", "--json")
    assert code == 0, err
    for given, message in (
        (["--method", "dkd"], "learns from the label of every image"),
        (["--method", "rsd", "--loader.labels", "none"], "with loader.labels 'none'"),
    ):
        code, _, err = run(capsys, "fit", *words, *given, "--out", "other")
        assert code == 2
        assert message in err


def test_joined_images_are_found_by_number():
    class Few:
        def __init__(self, *values):
            self.values, self.labels = values, [0] * len(values)

        def __len__(self):
            return len(self.values)

        def read(self, index, at_least=None):
            return self.values[index]

    joined = Joined(Few("a", "b"), Few(), Few("c"), Few("d", "e"))
    assert [joined.read(index) for index in range(len(joined))] == ["a", "b", "c", "d", "e"]
    assert np.array_equal(joined.labels, [0, 0, -1, -1, -1])


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_copies_in_another_kind_of_set_are_left_out(tmp_path, kind):
    labelled, _ = folders(tmp_path)
    plain = load_data(labelled, LoaderConfig())
    paths = sorted((tmp_path / "labelled").glob("*/*.png"))
    (tmp_path / "shards").mkdir()
    if kind == "tar":
        write(tmp_path / "shards" / "a.tar", *[(f"{n}.png", path.read_bytes()) for n, path in enumerate(paths)])
    else:
        datasets = pytest.importorskip("datasets")
        cells = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        features = datasets.Features({"image": datasets.Image()})
        rows = datasets.Dataset.from_dict({"image": cells}, features=features)
        rows.to_parquet(tmp_path / "shards" / "a.parquet")
    data = load_data(labelled, LoaderConfig(unlabelled=str(tmp_path / "shards")))
    held_out = len(plain.val) + len(plain.test)
    assert any(f"{held_out} more are left out" in line for line in data.about)
    assert len(data.train) == len(plain.train) * 2


def test_other_unlabelled_images_are_another_input(tmp_path):
    labelled, more = folders(tmp_path)
    before = data_digests(load_data(labelled, LoaderConfig(unlabelled=more)))
    for number in range(33):
        put(noise(2000 + number), tmp_path / "more" / "deep" / f"{number}.png")
    after = data_digests(load_data(labelled, LoaderConfig(unlabelled=more)))
    assert {name for name in before if before[name] != after[name]} >= {"unlabelled 1 images"}
    assert all(before[name] == after[name] for name in before if not name.startswith("unlabelled"))
