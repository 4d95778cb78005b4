"""Where no terminal is attached: a line at least every minute, in every part of a run."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from crossdistill import progress
from crossdistill.config import EngineConfig
from crossdistill.training.fit import fit


@pytest.fixture
def lines(quick, teacher_run, tmp_path, monkeypatch):
    """The lines of a run with a cache, when each is due at once."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    out = io.StringIO()
    engine = EngineConfig(accelerator="cpu", threads=1, log_every=1000)
    config = replace(quick, method="kd", teacher_checkpoint=str(teacher_run), engine=engine, out=str(tmp_path / "run"))
    fit(replace(config, cache=str(tmp_path / "cache")), console=Console(file=out, width=60))
    return out.getvalue().splitlines()


def test_every_part_of_a_run_prints_lines(lines):
    left = r"\d+ s, \d+ s left"
    speed = r"loss \d\.\d+  \d+ images/s"
    expected = [
        rf"teacher test_resnet on held-out images  batch 1/2  {left}",
        # 320 images in one view of one shard.
        rf"teacher cache  0/2 shards  {left}",
        r"teacher cache  2/2 shards  \d+ s, 0 s left",
        # Before the first log row, which comes at the end of the epoch.
        rf"kd test_vit s0  step 1  epoch 1/2  {speed}.*  {left}",
        rf"kd test_vit s0  validation batch 1/2  epoch 1/2  {speed}.*  {left}",
        rf"kd test_vit s0  validation batch 2/2  epoch 2/2  {speed}  val \d+\.\d+%.*  {left}",
        rf"student on the test split  batch 1/9  {left}",
        r"teacher on the test split  batch 9/9  \d+ s, 0 s left",
    ]
    places = []
    for pattern in expected:
        found = [place for place, line in enumerate(lines) if re.fullmatch(pattern, line)]
        assert found, f"{pattern} is not in\n" + "\n".join(lines)
        places.append(found[0])
    assert places == sorted(places)
    # Lines inside a shard: 5 batches of 64 images each.
    assert sum(line.startswith("teacher cache  0/2 shards") for line in lines) == 5
