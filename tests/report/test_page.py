import re

import pytest
import torch

from crossdistill.report.comparison import full_table, short_table, write_comparison_page
from crossdistill.report.groups import Group
from crossdistill.report.page import cost_table, run_table
from crossdistill.report.records import RunRecord
from crossdistill.training.run_folder import environment

MODEL = {"name": "m<b>", "parameters": 3_000_000, "macs": 4e6, "images_per_second": 5.0, "img_size": 32}


def record(folder, method, seed, top1, teacher=None):
    scores = {"top1": top1, "loss": 1.0, "ece": 2.0, "images": 10}
    metrics = {
        "method": method,
        "seed": seed,
        "data": "digits",
        "training": {"seconds": 1.0, "epochs": 2, "training_only_parameters": 1234, "global_batch": 64},
        "student": {**MODEL, "test": scores},
    }
    if teacher is not None:
        metrics["teacher"] = {**MODEL, "name": "t", **({"test": {**scores, "top1": teacher}} if teacher else {})}
    curves = {"val/top1": [(1.0, top1 - 1), (2.0, top1)], "train/task": [(1.0, 2.0), (2.0, 1.0)]}
    return RunRecord(folder, "epochs: 2\n", metrics, environment(1, {"class names": "0a1b"}), curves, [])


def grouped(**runs):
    """Make groups by name, each compared with that named none."""
    plain = Group("none", tuple(runs["none"])) if "none" in runs else None
    return [plain if name == "none" else Group(name, tuple(members), plain) for name, members in runs.items()]


@pytest.fixture
def groups(tmp_path):
    none = [record(tmp_path, "none", seed, top1) for seed, top1 in enumerate((40.0, 42.0, 44.0))]
    return grouped(none=none, kd=[record(tmp_path, "kd", seed, 50.0 + seed, teacher=80.0) for seed in range(3)])


def test_means_spreads_and_gains(groups):
    assert short_table(groups).rows == [
        ["teacher (t)", "80.00", "", "", "", "1", ""],
        ["none", "42.00", "± 2.00", "", "", "3", "1,234"],
        ["kd", "51.00", "± 1.00", "+9.00", "0.50", "3", "1,234"],
    ]
    rows = full_table(groups).rows
    assert [len(row) for row in rows] == [len(full_table(groups).header)] * 3
    # Differences 10, 9 and 8: standard error 1 / sqrt(3), and 4.303 is the quantile of t with 2 degrees of freedom.
    assert rows[2][:6] == ["kd", "51.00", "1.00", "+9.00", "2.48", ""]


def test_the_time_until_a_run_is_as_good_as_the_plain_one(tmp_path):
    plain = [record(tmp_path, "none", seed, 40.0) for seed in (0, 1)]
    runs = {top1: record(tmp_path, "kd", seed, top1) for seed, top1 in enumerate((40.5, 30.0))}
    rows = short_table(grouped(none=plain, kd=list(runs.values()), rsd=[runs[30.0]])).rows
    assert [row[4] for row in rows] == ["", "1.00 (1 of 2)", "never"]
    assert short_table(grouped(kd=[runs[40.5]])).rows[0][4] == ""


def test_a_teacher_without_scores_has_no_row(tmp_path):
    run = record(tmp_path, "rsd", 0, 50.0, teacher=0)
    assert [row[0] for row in short_table(grouped(rsd=[run])).rows] == ["rsd"]
    assert [row[0] for row in run_table(run).rows] == ["student (m<b>)"]
    assert [row[0] for row in cost_table(run).rows] == ["student (m<b>)", "teacher (t)"]


def test_the_page_is_self_contained_and_escaped(groups, tmp_path):
    page = write_comparison_page(tmp_path, groups).read_text()
    assert page.count("<svg") == 1
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)([^\"']+)", page)
    assert "t teaches m&lt;b&gt;" in page
    assert "m<b>" not in page
    assert f"torch {torch.__version__}" in page
    assert "0a1b" not in page
