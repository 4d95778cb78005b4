import pytest

from crossdistill.cli import main

TEACHER = [
    "--teacher", "test_resnet", "--data", "digits", "--img-size", "32", "--epochs", "5", "--model.stem", "native",
    "--loader.batch-size", "64", "--augment.hflip", "0", "--engine.accelerator", "cpu", "--engine.threads", "1",
]  # fmt: skip


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory):
    """A real teacher of the digits, trained by the command."""
    out = tmp_path_factory.mktemp("commands") / "teacher"
    assert main(["teacher", *TEACHER, "--optim.lr", "2e-3", "--out", str(out)]) == 0
    return out
