"""Long runs do not grow."""

import json
import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crossdistill.report.comparison import write_comparison_page
from crossdistill.report.groups import find_runs, group_runs
from crossdistill.training.fit import fit


def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.slow
def test_ten_thousand_steps_take_no_more_memory_than_two_thousand(quick, silent, tmp_path):
    # 70 steps in an epoch.
    loader = replace(quick.loader, max_train=None, batch_size=16)
    config = replace(quick, method="none", loader=loader, epochs=143, out=str(tmp_path / "run"))
    sizes, finished = [], threading.Event()

    def sample():
        while not finished.wait(1.0):
            sizes.append(resident_mib())

    sampler = threading.Thread(target=sample)
    sampler.start()
    began = time.perf_counter()
    fit(config, console=silent)
    finished.set()
    sampler.join()
    second, last = sizes[len(sizes) // 5 : 2 * len(sizes) // 5], sizes[4 * len(sizes) // 5 :]
    growth = statistics.mean(last) - statistics.mean(second)
    print(f"{time.perf_counter() - began:.0f} s, {statistics.mean(last):.0f} MiB at the end, {growth:+.1f} MiB")
    assert growth < 16


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux")
def test_the_peak_is_that_of_the_run_alone(quick, silent, tmp_path):
    before = torch.zeros(2**28)  # 1 GiB that is taken before the run, and freed
    taken = resident_mib()
    del before
    config = replace(quick, method="none", epochs=1, out=str(tmp_path / "run"))
    folder = fit(config, console=silent)
    peak = json.loads((folder / "metrics.json").read_text())["training"]["peak_memory"] / 2**20
    assert resident_mib() / 2 < peak < taken - 256
    (tmp_path / "page").mkdir()
    assert f">{peak:.0f}<" in write_comparison_page(tmp_path / "page", group_runs(find_runs([folder]))).read_text()
