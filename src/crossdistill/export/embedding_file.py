"""Embeddings of many images in a file, written while they are computed."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossdistill.errors import UserError


def check_target(path: Path) -> Path:
    """Return the file that embeddings are written into. Raises UserError for one that cannot be made."""
    if path.suffix not in (".npy", ".parquet"):
        raise UserError(f"--embedding {str(path)!r}: give a name that ends in .npy or .parquet")
    names = path.with_suffix(".txt")
    if path.suffix == ".npy" and names.exists() and not path.exists():
        raise UserError(f"--embedding {str(path)!r}: {str(names)!r}, for the names of the files, exists")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--embedding {str(path)!r}: there is no folder {str(path.parent)!r}")
    return path


class EmbeddingFile:
    """A .npy file (N, D) float32, with the files' names beside it in .txt; or .parquet with columns file, embedding.

    The rows are the images that were read, in order. Raises UserError for another suffix, and without pyarrow.
    """

    def __init__(self, path: Path) -> None:
        self.path = check_target(path)
        self._partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        self._partial_names = path.with_name(f"{path.stem}.txt.{os.getpid()}.partial")
        self._count = self._width = 0
        self._writer: Any = None
        if path.suffix == ".parquet":
            try:
                import pyarrow.parquet  # noqa: F401
            except ImportError as error:
                raise UserError("a .parquet file needs pyarrow: pip install 'crossdistill[parquet]'") from error
        self._file = self._partial.open("wb")
        self._names = (
            None
            if path.suffix == ".parquet"
            else self._partial_names.open("w", encoding="utf-8", errors="surrogateescape")
        )

    def add(self, files: Sequence[str], embeddings: Any) -> None:
        """Write the embeddings (B, D) of a batch."""
        values = np.ascontiguousarray(embeddings, dtype=np.float32)
        self._count, self._width = self._count + len(values), values.shape[1]
        if self._names is None:
            self._add_parquet(files, values)
            return
        self._file.write(values.tobytes())
        self._names.writelines(name.replace("\n", "\\n") + "\n" for name in files)

    def _add_parquet(self, files: Sequence[str], values: Any) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        # Names of files are bytes, and need not be UTF-8, which parquet requires.
        names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in files]
        table = pa.table({"file": names, "embedding": rows})
        self._writer = self._writer or pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def close(self, *, whole: bool) -> None:
        """Put the file in its place; where the work has failed, what was there before stays."""
        if self._writer is not None:
            self._writer.close()
        self._file.close()
        if self._names is not None:
            self._names.close()
        if whole and not self._count:
            print(f"crossdistill: there are no embeddings, so {str(self.path)!r} is not written", file=sys.stderr)
        elif whole and self._names is not None:
            self._add_header()
            os.replace(self._partial_names, self.path.with_suffix(".txt"))
        elif whole:
            os.replace(self._partial, self.path)
        for partial in (self._partial, self._partial_names):
            partial.unlink(missing_ok=True)

    def _add_header(self) -> None:
        """Put the header, which holds the number of rows, before them."""
        finished = self.path.with_name(f"{self.path.name}.{os.getpid()}.whole")
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._width)}
        with finished.open("wb") as target, self._partial.open("rb") as rows:
            np.lib.format.write_array_header_1_0(target, header)
            shutil.copyfileobj(rows, target)
        os.replace(finished, self.path)
