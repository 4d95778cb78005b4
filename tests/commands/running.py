"""Commands of the real command line, in this process, on a small task."""

from crossdistill.cli import main

TINY = [
    "--student", "test_vit", "--data", "digits", "--img-size", "32", "--epochs", "2", "--model.stem", "native",
    "--model.student-args.patch_size", "8", "--loader.batch-size", "64", "--loader.max-train", "192",
    "--augment.hflip", "0", "--engine.accelerator", "cpu", "--engine.threads", "1", "--optim.lr", "2e-3",
]  # fmt: skip


def run(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err
