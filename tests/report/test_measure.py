from dataclasses import replace

import pytest

from crossdistill import UserError
from crossdistill.report.comparison import full_table, short_table
from crossdistill.report.measure import NEIGHBOURS, TOP1, measure_of_all, score, teacher_score
from tests.report.test_page import MODEL, grouped, record


def unlabelled(folder, seed, knn, probe, teacher, probed="digits"):
    """A run without labels, whose embedding has these scores; those of its teacher are (knn, probe)."""
    made = record(folder / f"{probed}{seed}{knn}", "rsd", seed, 0.0)
    student = {**MODEL, "knn": knn, **({} if probe is None else {"linear_probe": probe})}
    own = {**MODEL, "name": "t", "knn": teacher[0], "linear_probe": teacher[1]}
    return replace(
        made, settings=f"probe_data: {probed}\n", metrics={**made.metrics, "student": student, "teacher": own}
    )


def test_a_teacher_has_a_row_for_each_set_of_images_and_each_score(tmp_path):
    runs = [unlabelled(tmp_path, seed, 40.0 + seed, 50.0, (70.0, 80.0)) for seed in (0, 1)]
    assert short_table(grouped(rsd=runs)).rows == [
        ["teacher (t)", "70.00", "", "80.00", "", "1"],
        ["rsd", "40.50", "0.71", "50.00", "0.00", "2"],
    ]
    runs.append(unlabelled(tmp_path, 2, 90.0, 95.0, (99.0, 100.0), probed="other"))
    rows = full_table(grouped(rsd=runs[:2], other=runs[2:])).rows
    assert [row[:4] for row in rows[:2]] == [
        ["teacher (t)  probe_data=digits", "70.00", "", "80.00"],
        ["teacher (t)  probe_data=other", "99.00", "", "100.00"],
    ]
    # Of two scores under one name neither is dropped, and a mean is one over all runs.
    runs = [unlabelled(tmp_path, 0, 40.0, 50.0, (70.0, 80.0)), unlabelled(tmp_path, 1, 42.0, None, (55.0, 60.0))]
    table = short_table(grouped(rsd=runs))
    assert [row[1] for row in table.rows] == ["70.00", "55.00", "41.00"]
    assert table.rows[2][3] == ""
    assert len(set(table.header)) == len(table.header)


def test_runs_are_compared_by_what_all_of_them_have(tmp_path):
    labelled = record(tmp_path / "a", "kd", 0, 50.0, teacher=80.0)
    free = unlabelled(tmp_path, 0, 40.0, 50.0, (70.0, 80.0))
    assert (measure_of_all([labelled]), measure_of_all([free]), measure_of_all([])) == (TOP1, NEIGHBOURS, TOP1)
    assert (score(labelled), teacher_score(labelled), score(free), teacher_score(free)) == (50.0, 80.0, 40.0, 70.0)
    with pytest.raises(UserError, match=r"digits040.*no score to compare by top-1"):
        measure_of_all([free, labelled])
