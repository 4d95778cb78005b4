"""The samples in a tar file: which files belong together, and where each is."""

import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from crossdistill.data.picture import picture_suffixes
from crossdistill.errors import UserError, first_line

_SMALL = 2**20
"""Most bytes of a label."""
_BLOCK = 512


@dataclass
class Sample:
    """The files of one sample, by the end of their names."""

    shard: str
    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Place and size in the shard, by suffix without its dot."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Contents of the files that may hold a label."""

    def __str__(self) -> str:
        return place_of(self.key, self.shard)

    @property
    def endings(self) -> str:
        """List its files."""
        return ", ".join(f".{ending}" for ending in self.files)


def read_samples(path: Path) -> list[Sample]:
    """Read the headers of a shard. Raises UserError for one that is damaged, or that is compressed."""
    samples: list[Sample] = []
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if member.isdir() or PurePosixPath(member.name).name.startswith("."):
                    continue
                _check_plain(path, member)
                _add(samples, str(path), member, shard)
            end = shard.offset
    except tarfile.TarError as error:
        reason = "it is compressed, so images cannot be read in any order: unpack it" if _compressed(path) else error
        raise UserError(f"the tar shard {str(path)!r} cannot be read: {reason}") from error
    except (OSError, UnicodeError) as error:
        raise UserError(f"the tar shard {str(path)!r} cannot be read: {first_line(error)}") from error
    _check_end(path, end)
    if not samples:
        raise UserError(f"the tar shard {str(path)!r} holds no files")
    counts = Counter(sample.key for sample in samples)
    if twice := next((sample for sample in samples if counts[sample.key] > 1), None):
        raise UserError(f"{twice} is there twice; the files of a sample must follow each other")
    return samples


def _check_plain(path: Path, member: tarfile.TarInfo) -> None:
    """Raise UserError for a member whose bytes do not stand in the shard one after the other."""
    kind = "a link" if member.issym() or member.islnk() else None if member.isreg() else "a special file"
    if member.issparse():
        kind = "stored sparse"
    if kind is not None:
        raise UserError(
            f"{member.name!r} in the tar shard {str(path)!r} is {kind}, which is not read: write the shard anew with "
            "plain files (tar without --sparse, with --hard-dereference --dereference)"
        )


def place_of(key: str, shard: str) -> str:
    """Name a sample."""
    return f"sample {key!r} of {shard!r}"


def _add(samples: list[Sample], path: str, member: tarfile.TarInfo, shard: tarfile.TarFile) -> None:
    """Add a file to the sample of its name."""
    above, _, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    key = f"{above}/{stem}" if above else stem
    if not samples or samples[-1].key != key:
        samples.append(Sample(path, key))
    sample, ending = samples[-1], ending.lower()
    if ending in sample.files:
        raise UserError(f"{sample} has two files .{ending}")
    sample.files[ending] = (member.offset_data, member.size)
    if not is_image(ending) and member.size <= _SMALL:
        file = shard.extractfile(member)
        sample.texts[ending] = b"" if file is None else file.read()


def _check_end(path: Path, end: int) -> None:
    """Raise UserError for a shard that was cut, or that goes on after its end: tarfile would leave the rest out."""
    with path.open("rb") as file:
        file.seek(end)
        mark = file.read(_BLOCK)
        if len(mark) < _BLOCK or any(mark):
            raise UserError(f"the tar shard {str(path)!r} is damaged or incomplete: its end mark is missing")
        while more := file.read(2**20):
            if any(more):
                raise UserError(f"the tar shard {str(path)!r} goes on after its end mark: are these two archives?")


def _compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def is_image(ending: str) -> bool:
    """Return whether a file with this ending of its name is an image: jpg, or img.png."""
    return f".{ending.rpartition('.')[2]}" in picture_suffixes()
