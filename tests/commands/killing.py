"""Run commands that are killed at their n-th file event: `python -m tests.commands.killing FOLDER KIND N [N ...]`.

One process imports everything once, and forks a child for each command. A child counts what it does to files below its
folder (open for writing, rename, remove, make a folder), and kills itself with SIGKILL before the n-th. Then the same
command, or `--resume`, goes on in another child. Prints a JSON line for each n: the state of what was written.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path

from tests.commands.running import TINY

_OF_PATHS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def command(kind, folder):
    """The words of a command of a kind, which writes below `folder`, and those that go on after a crash."""
    teacher = str(folder.parent / "teacher")
    common = [*TINY, "--teacher-checkpoint", teacher, "--trust-teacher", "true"]
    out = str(folder / "out")
    if kind == "fit":
        words = ["fit", *common, "--method", "rsd", "--out", out]
        return words, ["fit", "--out", out, "--resume"]
    if kind == "compare":
        words = ["compare", *common, "--epochs", "1", "--methods", "none,kd", "--seeds", "0", "--out", out]
    else:
        words = ["cache", *common, "--cache", out, "--loader.views", "2"]
    return words, words


def run(words, root=None, at=None):
    """Run a command in a child; returns its exit code, or minus the number of its signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    from crossdistill.cli import main

    seen = 0

    def count(event, args):
        nonlocal seen
        if event == "open":
            path, mode, flags = args
            writes = any(c in mode for c in "wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)
        else:
            path, writes = (args[0] if args else None), event in _OF_PATHS
        if writes and isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(root)):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    if root is not None:
        sys.addaudithook(count)
    code = 1
    with contextlib.suppress(BaseException):
        code = main(words)
    if at == 0:
        (root / "events").write_text(str(seen))
    os._exit(code)


def state(kind, folder):
    """What a finished command has left, as far as it is the same every time."""
    out = folder / "out"
    if kind == "compare":
        with sqlite3.connect(out / "results.sqlite") as table:
            rows = table.execute("SELECT folder, state, top1 FROM runs ORDER BY folder").fetchall()
        return [*map(list, rows), *(_digest(path) for path in sorted(out.glob("*/student.safetensors")))]
    names = ["student.safetensors", "config.json"] if kind == "fit" else [*(p.name for p in out.glob("*.bin"))]
    return {name: _digest(out / name) for name in sorted(names)}


def attempts(kind, folder):
    """How often each run was started, by its folder."""
    logs = folder.glob("out/logs" if kind == "fit" else "out/*/logs")
    return {path.parent.name: len(list(path.glob("[0-9]*"))) for path in logs}


def _digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def main(base, kind, numbers):
    from crossdistill.commands import evaluate  # noqa: F401
    from crossdistill.training import compare  # noqa: F401

    teacher = ["teacher", "--teacher", "test_resnet", *TINY[2:], "--epochs", "1", "--out", str(base / "teacher")]
    teacher = [word for word in teacher if word not in ("--model.student-args.patch_size", "8")]
    if not (base / "teacher" / "metrics.json").exists():
        assert run(teacher) == 0
    whole = base / f"{kind}-whole"
    whole.mkdir()
    words, _ = command(kind, whole)
    assert run(words, whole, 0) == 0
    events = int((whole / "events").read_text())
    expected = state(kind, whole)
    for number in numbers or range(1, events + 1):
        folder = base / f"{kind}-{number}"
        folder.mkdir()
        words, again = command(kind, folder)
        place = 1 + (number - 1) % events
        killed = run(words, folder, place)
        started = attempts(kind, folder)
        done = [path.parent.name for path in folder.glob("out/*/metrics.json")]
        code = run(again if (folder / "out" / "config.yaml").exists() else words)
        result = {"event": place, "of": events, "killed": killed, "code": code}
        result["same"] = code == 0 and state(kind, folder) == expected
        after = attempts(kind, folder)
        result["once"] = all(after[name] == started[name] for name in done)
        print(json.dumps(result), flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(word) for word in sys.argv[3:]])
