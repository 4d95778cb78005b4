"""A lock in the folder of a run, held while the run is written, and claims of the runs of a comparison."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from lightning.fabric.utilities.rank_zero import rank_zero_only

from crossdistill.errors import UserError
from crossdistill.files import make_folder

LOCK_NAME = ".lock"
_CLAIMS = ".claims"


class RunLock:
    """Held by the first process of the run that writes a folder; it is released when that process ends.

    On a shared disk it holds over machines where the file system supports locks.
    """

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    @rank_zero_only
    def acquire(self, out: Path) -> None:
        """Take the lock of an existing folder. Raises UserError where another process holds it."""
        if self._lock is not None:
            return
        lock = FileLock(out / LOCK_NAME)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"{str(out)!r} is being written by another process; wait for its end, or choose another --out"
            ) from None
        except NotImplementedError:
            text = (
                f"note: the file system of {str(out)!r} has no locks, so nothing stops another process from writing it"
            )
            print(f"crossdistill: {text}", file=sys.stderr)
            return
        except OSError as error:
            raise UserError(f"cannot write to {str(out)!r}: {error.strerror or error}") from error
        self._lock = lock

    def release(self) -> None:
        """Release the lock, if this process holds it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Claim one of the runs in a folder; yields False where another process has. A process that dies gives it up."""
    make_folder(folder)
    claims = folder / _CLAIMS
    claims.mkdir(exist_ok=True)
    lock = FileLock(claims / f"{name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except NotImplementedError:
        # A file system without locks: RunLock says so.
        yield True
        return
    except OSError as error:
        raise UserError(f"cannot claim {name!r} in {str(folder)!r}: {error.strerror or error}") from error
    try:
        yield True
    finally:
        lock.release()
