from dataclasses import replace

import numpy as np
import pytest
import torch

from crossdistill import UserError
from crossdistill.evaluation.predictions import Collected, read_predictions
from crossdistill.report.groups import find_runs, group_runs, teacher_names
from crossdistill.report.records import RunRecord
from crossdistill.report.statistics import gain
from crossdistill.report.tables import TextTable, as_csv, as_latex, as_markdown
from tests.report.test_page import record


def run(folder, method, seed, top1=50.0, teacher=None, settings=""):
    made = record(folder, method, seed, top1, teacher)
    return RunRecord(made.folder, f"method: {method}\nseed: {seed}\n{settings}", *(getattr(made, n) for n in FIELDS))


FIELDS = ("metrics", "environment", "curves", "samples")


def test_groups_are_named_by_what_differs(tmp_path):
    kappa = "options: {{rsd: {{kappa: {}, weight: 0.1}}}}"
    runs = [run(tmp_path, "rsd", seed, settings=kappa.format(k)) for seed in (0, 1) for k in (0.0, 0.01)]
    runs += [run(tmp_path, "kd", 0, settings="options: {kd: {temperature: 4.0}}"), run(tmp_path, "none", 0)]
    groups = group_runs(runs)
    assert [group.label for group in groups] == ["none", "rsd{kappa=0.0}", "rsd{kappa=0.01}", "kd"]
    assert [len(group.runs) for group in groups] == [1, 2, 2, 1]
    assert [group.base and group.base.label for group in groups] == [None, "none", "none", "none"]


def test_other_settings_are_other_groups_with_their_own_plain_students(tmp_path):
    optim = "optim: {{lr: {}, balance: {}}}"
    runs = [run(tmp_path, m, 0, settings=optim.format(lr, "auto")) for m in ("none", "rsd") for lr in (0.1, 0.2)]
    runs.append(run(tmp_path, "rsd", 0, settings=optim.format(0.1, 1.0)))
    bases = {group.label: group.base and group.base.label for group in group_runs(runs)}
    assert bases == {
        "none  lr=0.1, balance=auto": None,
        "none  lr=0.2, balance=auto": None,
        "rsd  lr=0.1, balance=auto": "none  lr=0.1, balance=auto",
        "rsd  lr=0.2, balance=auto": "none  lr=0.2, balance=auto",
        # The balance does not change a student without a teacher.
        "rsd  lr=0.1, balance=1.0": "none  lr=0.1, balance=auto",
    }


def taught(folder, seed, digest, settings=""):
    made = run(folder, "kd", seed, teacher=80.0, settings=settings)
    inputs = {**made.environment.inputs, "teacher_checkpoint 1 student.safetensors": digest}
    return replace(made, environment=replace(made.environment, inputs=inputs))


def test_teachers_of_one_name_are_told_apart_by_their_weights(tmp_path):
    runs = [taught(tmp_path, seed, digest) for digest in ("aaaaaaaa", "bbbbbbbb") for seed in (0, 1)]
    groups = group_runs([*runs, run(tmp_path, "none", 0)])
    assert [group.label for group in groups] == ["none", "t aaaaaa  kd", "t bbbbbb  kd"]
    assert [len(group.runs) for group in groups] == [1, 2, 2]
    assert [group.base and group.base.label for group in groups] == [None, "none", "none"]


def test_teachers_of_one_name_are_named_by_their_folders(tmp_path):
    runs = [
        taught(tmp_path, 0, digest, f"teacher_checkpoint: /runs/{folder}/teacher")
        for digest, folder in (("aaaaaaaa", "big"), ("bbbbbbbb", "small"))
    ]
    assert [group.label for group in group_runs(runs)] == ["t big/teacher  kd", "t small/teacher  kd"]
    assert teacher_names(runs) == ["t big/teacher", "t small/teacher"]
    # Two teachers under one path: the weights were replaced.
    runs = [taught(tmp_path, 0, digest, "teacher_checkpoint: /runs/teacher") for digest in ("aaaaaaaa", "bbbbbbbb")]
    assert teacher_names(runs) == ["t aaaaaa", "t bbbbbb"]


def test_settings_that_change_a_result_make_groups_and_others_do_not(tmp_path):
    def labels(settings):
        return [group.label for group in group_runs([taught(tmp_path, 0, "a", one) for one in settings])]

    for name, value in (("precision", "bf16"), ("accumulate", 4)):
        assert labels([f"engine: {{{name}: 1}}", f"engine: {{{name}: {value}}}"])[1] == f"kd  {name}={value}"
    assert labels(["model: {teacher_stem: native}", "model: {teacher_stem: small}"])[1] == "kd  teacher_stem=small"
    assert labels(["engine: {threads: 1}", "engine: {threads: 2}"]) == ["kd"]
    # A student without a teacher is the base of all of them.
    groups = group_runs([taught(tmp_path, 0, "a", "cache_dtype: float16"), run(tmp_path, "none", 0)])
    assert groups[1].base is groups[0] or groups[1].base == groups[0]


def test_data_of_one_name_with_other_test_images_is_not_mixed(tmp_path):
    plain, other, kd = run(tmp_path, "none", 0, 70.0), run(tmp_path, "none", 0, 10.0), run(tmp_path, "kd", 0, 11.0)
    for one in (other, kd):
        one.environment.inputs["test images"] = "noise"
    groups = group_runs([plain, other, kd])
    assert [len(group.runs) for group in groups] == [1, 1, 1]
    assert len({group.label for group in groups}) == 3
    assert all(" data=" in group.label for group in groups)
    assert groups[2].base == groups[1]


def test_a_repeated_seed_counts_once(tmp_path):
    assert [len(group.runs) for group in group_runs([run(tmp_path, "kd", seed) for seed in (0, 0, 1)])] == [2]


def test_a_gain_is_that_of_the_seeds_that_both_have(tmp_path):
    plain = [run(tmp_path, "none", seed, top1) for seed, top1 in enumerate((69.0, 71.0))]
    found = gain([run(tmp_path, "kd", seed, top1) for seed, top1 in enumerate((70.0, 72.0, 80.0))], plain)
    assert (found.mean, found.half_width) == (1.0, 0.0)
    assert gain([run(tmp_path, "kd", 5, 73.0)], plain).mean == 3.0


def predict(folder, classes):
    collected = Collected()
    for part in torch.tensor(classes).split(3):
        collected.add(torch.nn.functional.one_hot(part, 4).float(), torch.zeros(len(part), dtype=torch.long))
    folder.mkdir(exist_ok=True)
    collected.write(folder)


def test_gains_are_tested_over_the_same_images(tmp_path):
    runs = []
    for name, classes in (("none", [0] * 4 + [1] * 6), ("kd", [0] * 9 + [1])):
        predict(tmp_path / name, classes)
        made = run(tmp_path / name, name, 0, 40.0)
        made.metrics["student"]["test"]["images"] = 10
        runs.append(made)
    found = gain(runs[1:], runs[:1])
    # Of ten images five are gained: mean 0.5, standard deviation sqrt(5 / 18), t = 3 with 9 degrees of freedom.
    assert found.p_value == pytest.approx(0.01496, abs=1e-4)
    assert gain(runs[:1], runs[:1]).p_value == 1
    # Other images that happen to have the same classes are not paired.
    runs[0].environment.inputs["test images"] = "other"
    assert gain(runs[1:], runs[:1]).p_value is None
    stored = read_predictions(tmp_path / "kd", 10)
    assert stored.right.tolist() == [True] * 9 + [False]
    assert read_predictions(tmp_path, 10) is None


@pytest.mark.parametrize("damage", ["cut", "text", "count", "pickle", "nan"])
def test_damaged_predictions_are_named(tmp_path, damage):
    predict(tmp_path, [0, 1, 2, 3])
    path = tmp_path / "predictions.npz"
    whole = path.read_bytes()
    classes = np.zeros(4, dtype=np.int64)
    if damage == "cut":
        path.write_bytes(whole[:100])
    elif damage == "text":
        path.write_text("no array")
    elif damage == "pickle":
        np.savez(path, targets=np.array([{}] * 4), classes=classes, confidence=np.zeros(4))
    elif damage == "nan":
        np.savez(path, targets=classes, classes=classes, confidence=np.full(4, np.nan))
    with pytest.raises(UserError, match=r"predictions\.npz' is damaged"):
        read_predictions(tmp_path, 5 if damage == "count" else 4)


def test_folders_without_runs_are_named(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        find_runs([tmp_path / "nothing"])
    with pytest.raises(UserError, match="no finished run"):
        find_runs([tmp_path])


def test_tables_in_other_formats():
    table = TextTable("t", ["", "a|b"], [["x_y & ~", "± 1"], ['say "hi", you', "2"]])
    assert as_markdown(table).splitlines() == [
        "|  | a\\|b |",
        "| --- | --- |",
        "| x_y & ~ | ± 1 |",
        '| say "hi", you | 2 |',
    ]
    assert as_csv(table).splitlines() == [",a|b", "x_y & ~,± 1", '"say ""hi"", you",2']
    assert r"x\_y \& \textasciitilde{} & $\pm$ 1 \\" in as_latex(table).splitlines()
