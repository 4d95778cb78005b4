import os

# One thread: no OpenMP pool is made, so tests may fork processes, and small cases run faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    logging.getLogger("crossdistill").setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def golden() -> list[dict]:
    import json

    return json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())


@pytest.fixture
def unchecked_shapes():
    """Without the shape checks of the test run: what a user's call meets."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
