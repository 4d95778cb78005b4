"""Commands that are killed at a file event, and then go on, end with what an undisturbed command writes."""

import json
import os
import subprocess
import sys

import pytest


def killed(folder, kind, *numbers):
    done = subprocess.run(
        [sys.executable, "-m", "tests.commands.killing", folder, kind, *map(str, numbers)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(results):
    print(f"{len(results)} of {results[0]['of']} file events")
    for result in results:
        assert result["killed"] == -9, result
        assert (result["code"], result["same"], result["once"]) == (0, True, True), result


# Events far from each other; the places are taken modulo the number of events.
@pytest.mark.parametrize(("kind", "numbers"), [("fit", (29,)), pytest.param("cache", (10,), marks=pytest.mark.slow)])
def test_a_sample_of_file_events(tmp_path, kind, numbers):
    check(killed(tmp_path, kind, *numbers))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fit", "compare", "cache"])
def test_every_file_event(tmp_path, kind):
    check(killed(tmp_path, kind))
