from dataclasses import replace

import pytest

from crossdistill.report.groups import group_runs
from crossdistill.report.measure import score
from crossdistill.report.sweep import find_sweep, sweep_plot
from tests.report.test_groups import run

WEIGHT = "options: {{rsd: {{kappa: 0.01, weight: {}}}}}"


def swept(folder, values, settings=WEIGHT):
    runs = [run(folder, "rsd", s, 50 + s + v, 80.0, settings.format(v)) for v in values for s in (0, 1)]
    return [*runs, run(folder, "none", 0, 40.0), run(folder, "none", 1, 42.0)]


def test_the_one_setting_that_differs_is_drawn_over_its_values(tmp_path):
    groups = group_runs(swept(tmp_path, (3.0, 0.1, 1.0)))
    found = find_sweep(groups)
    assert (found.setting, found.values) == ("options.rsd.weight", [0.1, 1.0, 3.0])
    (members,) = found.series.values()
    assert {value: score(group.runs[0]) for value, group in members.items()} == {0.1: 50.1, 1.0: 51.0, 3.0: 53.0}
    figure = sweep_plot(groups)
    assert figure["text"] == "Mean top-1, %. rsd: 0.1: 50.60, 1.0: 51.50, 3.0: 53.50."
    assert all(text in figure["svg"] for text in ("options.rsd.weight", "top-1 on the test split, %", "none"))


def test_a_setting_of_all_runs_has_a_series_for_each_method(tmp_path):
    runs = [
        run(tmp_path, method, 0, 50.0, None if method == "none" else 80.0, f"optim: {{lr: {lr}}}")
        for method in ("none", "kd")
        for lr in (0.1, 0.2)
    ]
    found = find_sweep(group_runs(runs))
    assert (found.setting, found.values, sorted(found.series)) == ("optim.lr", [0.1, 0.2], ["kd", "none"])


@pytest.mark.parametrize("values", [(), (0.1,)])
def test_other_comparisons_have_no_plot(tmp_path, values):
    groups = group_runs([*swept(tmp_path, values), run(tmp_path, "kd", 0, 60.0, 80.0)])
    assert sweep_plot(groups) is None


def test_teachers_of_one_name_are_other_series(tmp_path):
    runs = []
    for digest, more in (("aaaaaaaa", 0.0), ("bbbbbbbb", 20.0)):
        for one in swept(tmp_path, (0.1, 1.0))[:4]:
            inputs = {**one.environment.inputs, "teacher_checkpoint 1 student.safetensors": digest}
            one.metrics["student"]["test"]["top1"] += more
            runs.append(replace(one, environment=replace(one.environment, inputs=inputs)))
    found = find_sweep(group_runs(runs))
    scores = [sorted(score(group.runs[0]) for group in members.values()) for members in found.series.values()]
    assert sorted(scores) == [[50.1, 51.0], [70.1, 71.0]]
