import xml.etree.ElementTree as ET
from dataclasses import replace

from crossdistill.report.plots import comparison, run_curves
from tests.report.test_page import record


def test_a_run_is_drawn_as_valid_svg(tmp_path):
    svg = run_curves(record(tmp_path, "kd", 0, 50.0))
    assert ET.fromstring(svg).tag.endswith("svg")
    assert "task" in svg


def test_every_term_has_a_line_of_its_own_and_empty_ones_have_none(tmp_path):
    run = record(tmp_path, "kd", 0, 50.0)
    terms = {f"train/term{number}": [(0.0, 1.0), (1.0, 2.0 + number)] for number in range(20)}
    svg = run_curves(replace(run, curves={**run.curves, **terms, "train/nothing": [(0.0, 0.0), (1.0, 0.0)]}))
    assert all(f">term{number}<" in svg for number in range(20))
    assert "nothing" not in svg


def test_methods_are_drawn_with_and_without_a_teacher(tmp_path):
    groups = {name: [record(tmp_path, name, 0, 50.0)] for name in ("none", "kd")}
    assert "teacher" in comparison(groups, 80.0)
    svg = comparison(groups, None)
    assert "teacher" not in svg
    assert ET.fromstring(svg).tag.endswith("svg")
