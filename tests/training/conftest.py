import pytest
from rich.console import Console

from crossdistill.config import AugmentConfig, EngineConfig, LoaderConfig, ModelConfig, OptimConfig, RunConfig
from crossdistill.training.run import fit

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


@pytest.fixture(scope="session")
def quick():
    return QUICK


@pytest.fixture(scope="session")
def silent():
    return Console(quiet=True)


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory, silent):
    """A real teacher of the digits, trained once for all tests."""
    from dataclasses import replace

    out = tmp_path_factory.mktemp("teacher") / "run"
    config = replace(
        QUICK,
        student="test_resnet",
        method="none",
        epochs=6,
        out=str(out),
        model=ModelConfig(stem="native"),
        loader=LoaderConfig(batch_size=64),
    )
    return fit(config, console=silent)
