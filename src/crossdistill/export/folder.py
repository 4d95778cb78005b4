"""The folder of an export: replaced as a whole, and never over files of the user."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter

from crossdistill.files import file_digest, parse_json, read_plain, sync_folder

REPORT_NAME = "export.json"


def users_files(folder: Path) -> list[str]:
    """Return the names of what a folder holds beside an export, or that was changed since (a model card, say)."""
    try:
        stored = parse_json(read_plain(folder / REPORT_NAME))
        written = TypeAdapter(dict[str, str]).validate_python(stored["files"])
    except (OSError, ValueError, KeyError, TypeError):
        written = {}
    others = [path for path in sorted(folder.iterdir()) if not (written and path.name == REPORT_NAME)]
    return [path.name for path in others if not path.is_file() or written.get(path.name) != file_digest(path)]


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Make a folder in another place, which replaces `out` where nothing fails."""
    above = next(path for path in out.absolute().parents if path.exists())
    aside = Path(tempfile.mkdtemp(prefix=".export-", dir=above))
    try:
        (aside / "new").mkdir()
        yield aside / "new"
        out.parent.mkdir(parents=True, exist_ok=True)
        before = out.exists()
        if before:
            out.rename(aside / "old")
        try:
            (aside / "new").rename(out)
        except OSError:
            if before:
                (aside / "old").rename(out)
            raise
        sync_folder(out.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
