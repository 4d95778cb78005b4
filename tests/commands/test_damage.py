"""Every file of a run cut, emptied, flipped, swapped or removed: never a traceback, and exit code 0 or 2."""

import os
import shutil

import pytest

from tests.commands.running import TINY, run

WORDS = [*TINY, "--method", "none"]
STOPPING = "tests.training.stopping:Stopping"
BINARY = (".ckpt", ".safetensors")
FILES = [
    "config.yaml",
    "split.json",
    "trained.json",
    "environment.json",
    "metrics.json",
    "samples.json",
    "predictions.npz",
    "config.json",
    "student.safetensors",
    "logs/0/metrics.csv",
    "checkpoints/last.ckpt",
    "checkpoints/best.ckpt",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from crossdistill.cli import main

    out = tmp_path_factory.mktemp("finished") / "run"
    assert main([*map(str, ["fit", *WORDS, "--out", out])]) == 0
    return out


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that was stopped in its second epoch."""
    from crossdistill.cli import main

    out = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOP_AT", "5")
        assert main([*map(str, ["fit", *TINY, "--method", STOPPING, "--out", out])]) == 143
    return out


def emptied(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def flipped(path):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 4):
        content[place] ^= 0x55
    path.write_bytes(content)


def removed(path):
    path.unlink()


def list_instead(path):
    path.write_bytes(b"[1, null]")


def nested(path):
    path.write_bytes(b"[" * 200_000)


def pipe_instead(path):
    path.unlink()
    os.mkfifo(path)


def folder_instead(path):
    path.unlink()
    path.mkdir()


DAMAGES = (emptied, cut, flipped, removed, list_instead, nested, pipe_instead, folder_instead)


def damaged_copies(source, tmp_path, files=FILES):
    """Yield a copy of a folder for each file and each way to damage it."""
    others = [source / name for name in files if (source / name).exists()]
    for place, name in enumerate(name for name in files if (source / name).exists()):
        for damage in (*DAMAGES, None):
            out = shutil.copytree(source, tmp_path / "run")
            if damage is None:
                shutil.copy(others[place - 1], out / name)
            else:
                damage(out / name)
            yield f"{name} {'swapped' if damage is None else damage.__name__}", out
            shutil.rmtree(out)


def check(capsys, what, *words):
    try:
        code, _, err = run(capsys, *words)
    except Exception as error:
        raise AssertionError(f"{what}: {words[0]} ended with {error!r}") from error
    assert code in (0, 2), what
    if code == 2:
        lines = [line for line in err.splitlines() if line.startswith("crossdistill: ")]
        assert len(lines) == 1, (what, err)
    return code


OPTIONAL = ("trained.json removed", "predictions.npz removed")
"""Runs of earlier versions do not have these files."""
READ = ("config.yaml", "config.json", "student.safetensors", "trained.json")
"""The files that scoring a run reads."""


@pytest.mark.parametrize("files", [READ, pytest.param(FILES, marks=pytest.mark.slow)], ids=["read", "all"])
def test_a_damaged_finished_run_is_named(capsys, finished, tmp_path, files):
    codes = {}
    for what, out in damaged_copies(finished, tmp_path, files):
        codes[what] = check(capsys, what, "eval", out, "--split", "val")
    # Scoring may read past damage of other files. A flipped byte may leave the text of a setting readable.
    silent = [what for what, code in codes.items() if code == 0 and what.startswith(READ)]
    allowed = [what for what in silent if what.startswith("config") and what.endswith("flipped")]
    assert [what for what in silent if what not in (*allowed, *OPTIONAL)] == []
    print(f"{len(codes)} kinds of damage, {sum(code == 2 for code in codes.values())} refused")


@pytest.mark.slow
def test_a_damaged_run_is_named_in_a_report(capsys, finished, tmp_path):
    codes = {}
    for what, out in damaged_copies(finished, tmp_path):
        codes[what] = check(capsys, what, "report", out, "--out", tmp_path / "page")
    read = ("metrics.json", "environment.json", "samples.json", "predictions.npz")
    silent = [what for what, code in codes.items() if code == 0 and what.startswith(read)]
    assert [what for what in silent if not what.endswith("flipped") and what not in OPTIONAL] == []
    print(f"{len(codes)} kinds of damage, {sum(code == 2 for code in codes.values())} refused")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["timm", "onnx"])
def test_a_damaged_run_is_not_exported(capsys, finished, tmp_path, target):
    codes = {}
    for what, out in damaged_copies(finished, tmp_path):
        codes[what] = check(capsys, what, "export", out, "--to", target, "--out", tmp_path / "export")
        shutil.rmtree(tmp_path / "export", ignore_errors=True)
    read = ("config.yaml", "config.json", "student.safetensors", "metrics.json")
    silent = [what for what, code in codes.items() if code == 0 and what.startswith(read)]
    assert [what for what in silent if not what.endswith("flipped")] == []
    print(f"{len(codes)} kinds of damage, {sum(code == 2 for code in codes.values())} refused")


@pytest.fixture
def cached(capsys, teacher_run, tmp_path):
    """A teacher cache, the words of a run that reads it, and the student of that run."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    words = [
        "fit",
        *TINY,
        "--method",
        "rsd",
        "--teacher-checkpoint",
        teacher_run,
        "--epochs",
        "1",
        "--loader.views",
        "2",
    ]
    words += ["--out", out]
    assert check(capsys, "undamaged", *words, "--cache", cache) == 0
    return cache, words, (out / "student.safetensors").read_bytes()


def read_damaged(capsys, what, damaged, words, student):
    """Start the run on a damaged cache: it is refused, or the student is the same."""
    shutil.rmtree(words[-1], ignore_errors=True)
    code = check(capsys, what, *words, "--cache", damaged)
    assert code == 2 or (words[-1] / "student.safetensors").read_bytes() == student, what
    return code


@pytest.mark.slow
def test_a_damaged_cache_is_named_or_gives_the_same_student(capsys, cached, tmp_path):
    cache, *run_of = cached
    files = sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file())
    files = [name for name in files if name != ".gitignore" and "lock" not in name]
    assert len(files) >= 4
    damages = damaged_copies(cache, tmp_path, files)
    codes = [read_damaged(capsys, what, damaged, *run_of) for what, damaged in damages]
    print(f"{len(codes)} kinds of damage, {sum(code == 2 for code in codes)} refused")
    assert 2 in codes


@pytest.mark.parametrize(("name", "damage"), [("cache.json", cut), ("view-000-00000.bin", flipped)])
def test_a_sample_of_damage_to_a_cache(capsys, cached, name, damage):
    cache, *run_of = cached
    damage(cache / name)
    assert read_damaged(capsys, name, cache, *run_of) == 2


@pytest.mark.slow
def test_a_damaged_interrupted_run_is_named_or_continued(capsys, interrupted, tmp_path):
    """Where it goes on, the student is that of the run that was not damaged, byte for byte."""
    words = ("fit", "--resume", "--method", STOPPING, "--out")
    whole = shutil.copytree(interrupted, tmp_path / "whole")
    assert check(capsys, "undamaged", *words, whole) == 0
    codes = {}
    for what, out in damaged_copies(interrupted, tmp_path):
        codes[what] = check(capsys, what, *words, out)
        if codes[what] == 0:
            assert (out / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes(), what
    print(f"{len(codes)} kinds of damage, {sum(code == 2 for code in codes.values())} refused")


@pytest.mark.parametrize("name", ["environment.json", "checkpoints/last.ckpt"])
def test_a_sample_of_damage_to_an_interrupted_run(capsys, interrupted, tmp_path, name):
    for damage in (cut, list_instead):
        out = shutil.copytree(interrupted, tmp_path / damage.__name__)
        damage(out / name)
        code = check(capsys, name, "fit", "--out", out, "--resume", "--method", STOPPING)
        assert code == (2 if name == "environment.json" else 0)
