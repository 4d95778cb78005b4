import xml.etree.ElementTree as ET

from crossdistill.report.plots import comparison, run_curves
from tests.report.test_page import record


def test_a_run_is_drawn_as_valid_svg(tmp_path):
    svg = run_curves(record(tmp_path, "kd", 0, 50.0))
    assert ET.fromstring(svg).tag.endswith("svg")
    assert "task" in svg


def test_methods_are_drawn_with_and_without_a_teacher(tmp_path):
    groups = {name: [record(tmp_path, name, 0, 50.0)] for name in ("none", "kd")}
    assert "teacher" in comparison(groups, 80.0)
    svg = comparison(groups, None)
    assert "teacher" not in svg
    assert ET.fromstring(svg).tag.endswith("svg")
