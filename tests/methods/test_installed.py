"""Methods of installed packages; the one of docs/own-method.md is run."""

import re
import sys
from pathlib import Path

import pytest

from crossdistill import UserError, list_methods
from crossdistill.methods import choose_method
from tests.commands.running import TINY, run

PAGE = (Path(__file__).parents[2] / "docs" / "own-method.md").read_text(encoding="utf-8")
CODE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package, as pip leaves it: modules and the metadata of a distribution."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def make(package, points, **modules):
        site = tmp_path / "site"
        info = site / f"{package}-0.1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
        lines = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[crossdistill.methods]\n{lines}\n")
        for name, code in modules.items():
            (site / f"{name}.py").write_text(code)
            monkeypatch.delitem(sys.modules, name, raising=False)

    return make


def test_the_tutorial(install, capsys, tmp_path, teacher_run):
    assert len(CODE.splitlines()) < 60
    install("my-methods", dict(re.findall(r'^(\w+) = "(my_methods:\w+)"$', PAGE, re.MULTILINE)), my_methods=CODE)
    assert "angle" in list_methods()
    code, out, _ = run(capsys, "methods")
    assert (code, "angle (my-methods)" in out) == (0, True)
    words = ["fit", *TINY, "--epochs", "1", "--method", "angle", "--teacher-checkpoint", teacher_run]
    words += ["--options.angle.weight", "2", "--out", tmp_path / "run"]
    code, _, err = run(capsys, *words)
    assert code == 0, err
    assert "angle:\n    weight: 2.0" in (tmp_path / "run" / "config.yaml").read_text()
    assert "train/angle" in (tmp_path / "run" / "logs" / "0" / "metrics.csv").read_text()
    # Its options are accepted where another method is used, as those of built-in ones are.
    words = ["fit", *TINY, "--method", "none", "--options.angle.weight", "2", "--print-config"]
    with pytest.raises(SystemExit) as stop:
        run(capsys, *words)
    assert stop.value.code == 0
    capsys.readouterr()
    code, _, err = run(capsys, "fit", *TINY, "--method", "angle", "--options.angle.weight", "x")
    assert (code, "weight is 'x'" in err) == (2, True), err
    assert choose_method("angle+kd").needs.teacher.logits


def test_a_package_that_is_wrong_stops_only_its_own_method(install, capsys):
    install("bad", {"bad": "bad_module:Nothing", "kd": "bad_module:KD"}, bad_module="import not_there\n")
    install("one", {"twice": "one_module:A"}, one_module="")
    install("two", {"twice": "two_module:A"}, two_module="")
    code, out, err = run(capsys, "methods")
    assert (code, "kd" in out) == (0, True)
    assert "method 'bad' of the package 'bad' cannot be imported" in err
    assert "'bad' names a method as a built-in one" in err
    with pytest.raises(SystemExit) as stop:
        run(capsys, "fit", *TINY, "--method", "kd", "--print-config")
    assert stop.value.code == 0
    assert choose_method("kd").parts[0].method.__module__ == "crossdistill.methods.kd"
    with pytest.raises(UserError, match=r"'twice' is in the packages 'one' and 'two'"):
        choose_method("twice")
    with pytest.raises(UserError, match=r"'bad' .* cannot be imported \(ModuleNotFoundError"):
        choose_method("bad")
    with pytest.raises(UserError, match="did you mean 'twice'"):
        choose_method("twicf")
