"""Long runs do not grow."""

import statistics
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

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
