import os

# One thread: no OpenMP pool is made, so tests may fork processes, and small cases run faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crossdistill.config import AugmentConfig, EngineConfig, LoaderConfig, ModelConfig, OptimConfig, RunConfig

torch.set_num_threads(1)

QUICK = RunConfig(
    student="test_vit",
    data="digits",
    img_size=32,
    epochs=2,
    model=ModelConfig(stem="native", student_args={"patch_size": 8}),
    loader=LoaderConfig(batch_size=64, max_train=320),
    augment=AugmentConfig(hflip=0.0),
    optim=OptimConfig(lr=2e-3, warmup_epochs=1),
    engine=EngineConfig(accelerator="cpu", threads=1, log_every=2),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # torch.compile may start autograd's threads, after which a forked process cannot run a backward pass.
    items.sort(key=lambda item: item.path.stem == "test_compile")


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


@pytest.fixture(scope="session")
def quick():
    return QUICK


@pytest.fixture(scope="session")
def silent():
    from rich.console import Console

    return Console(quiet=True)


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory, silent):
    """A real teacher of the digits, trained once for all tests."""
    from crossdistill.training.fit import fit

    out = tmp_path_factory.mktemp("teacher") / "run"
    config = replace(
        QUICK,
        student="test_resnet",
        method="none",
        role="teacher",
        epochs=6,
        out=str(out),
        model=ModelConfig(stem="native"),
        loader=LoaderConfig(batch_size=64),
    )
    return fit(config, console=silent)
