"""The lists of methods in tests and benchmarks hold every method."""

import re
import tempfile
from pathlib import Path

import pytest

from benchmarks import pairs
from crossdistill.methods import METHODS, NONE, choose_method
from tests.pairs import METHODS as TESTED

STORED_LATER = {"fitnet", "cc", "rkd", "crd"}
"""Methods that are newer than the stored values of `python -m benchmarks.numbers`."""


def test_every_method_is_in_the_matrix_of_families():
    names = {name for name, _ in TESTED.values()}
    assert {one for name in names for one in name.split("+")} == {NONE, *METHODS}
    for name, options in TESTED.values():
        choose_method(name, options)


def test_the_stored_numbers_are_of_every_method():
    # Read, not imported: the module sets variables of the environment.
    text = (Path(pairs.__file__).parent / "numbers.py").read_text()
    stored = set(re.findall(r'"--method", "(\w+)"', text)) - {NONE}
    assert stored | STORED_LATER == set(METHODS)


@pytest.mark.parametrize("method", pairs.METHODS)
def test_every_method_can_be_timed(method):
    bench = pairs.Bench(pairs.MODELS[32]["cnn"], pairs.TEACHERS[32]["vit"], 32, 4, "cpu", "32")
    with tempfile.TemporaryDirectory() as folder:
        for cache in (None, bench.stored(method, Path(folder))):
            bench.case(method, method, cache).step()


def test_the_benchmarks_time_every_method():
    assert {method for method, _ in pairs.METHODS.values()} == set(METHODS)
