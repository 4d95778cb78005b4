"""The command line: finds the sub-command, and turns what it raises into an exit code."""

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from crossdistill.commands import COMMANDS
from crossdistill.errors import UserError, unknown

_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE),
    *(errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EBUSY, errno.ELOOP, errno.EXDEV),
)
"""Errors of disks and of files that are not what they should be."""


def _overview() -> str:
    lines = [
        "usage: crossdistill COMMAND [options]",
        "",
        "Distil one image network into another of a different architecture.",
        "",
    ]
    lines += [f"  {name:<9}{importlib.import_module(module).ABOUT}" for name, module in COMMANDS.items()]
    return "\n".join([*lines, "", "`crossdistill COMMAND --help` lists the options of a command."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command, and return the exit code: 0 done, 2 wrong input, 130 or 143 interrupted.

    Any other failure raises its exception.
    """
    if argv is None:
        _use_utf8()
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character of a name shows its code instead.
            stream.reconfigure(errors="backslashreplace")
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        from crossdistill import __version__

        print(__version__)
        return 0
    try:
        if words[0] not in COMMANDS:
            raise unknown("command", words[0], COMMANDS)
        return int(importlib.import_module(COMMANDS[words[0]]).run(words[1:]))
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno not in _DISK:
            raise
        return _refuse(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        signum = getattr(error, "signum", None)
        if signum is None:
            raise
        way = "with --resume" if words[0] in ("fit", "teacher") else "by the same command"
        print(f"crossdistill: {error}; continue {way}", file=sys.stderr)
        return 128 + int(signum)


def _use_utf8() -> None:
    """Start this process anew where Python would read the names of files in another encoding than UTF-8."""
    if sys.getfilesystemencoding() != "utf-8":
        command: list[str | bytes] = [sys.executable, "-m", "crossdistill", *map(os.fsencode, sys.argv[1:])]
        os.execve(sys.executable, command, {**os.environ, "PYTHONUTF8": "1"})


def _refuse(message: str) -> int:
    # The message of a worker process is its whole traceback; the error text is the last line.
    if "Original Traceback" in message:
        message = message.strip().splitlines()[-1].partition("UserError: ")[2]
    print(f"crossdistill: {message}", file=sys.stderr)
    return 2
