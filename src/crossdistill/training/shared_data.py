"""The images of a comparison: read once, and divided in the same way for every run."""

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from crossdistill.config import RunConfig
from crossdistill.data import ImageData, load_data
from crossdistill.data.split_list import SPLIT_NAME, SplitList, read_split_list
from crossdistill.training.embedding_scores import read_probe_data
from crossdistill.training.inputs import report_data
from crossdistill.training.run_folder import check_files, read_config

_DIVISION = (
    *("val_fraction", "split_seed", "max_train", "train_dir", "val_dir", "test_dir", "on_bad_image"),
    *("labels", "image_column", "label_column"),
)
"""Settings of the loader that the division of a folder depends on."""
_READING = (*_DIVISION, "unlabelled", "root", "download", "in_chans")
"""Settings of the loader that what is read depends on."""


@dataclass
class SharedData:
    """Data of the runs of a comparison in the folder `out`."""

    out: Path
    console: Console
    _loaded: dict[str, ImageData] = field(default_factory=dict)
    _probed: dict[str, ImageData | None] = field(default_factory=dict)

    def of(self, config: RunConfig) -> ImageData:
        """Return the data of a run, read once for all that read it in the same way."""
        key = repr([config.data, *(getattr(config.loader, name) for name in _READING)])
        if key not in self._loaded:
            found = load_data(config.data, config.loader, _earlier_list(config, self.out))
            check_files(self.out, found.changes)
            self._loaded[key] = found
            if len(self._loaded) == 1:
                report_data(self._loaded[key], self.console)
        return self._loaded[key]

    def probed(self, config: RunConfig) -> ImageData | None:
        """Return the images of a run's probe_data, read once; None without any."""
        if config.probe_data is None:
            return None
        key = repr([config.probe_data, config.probe_linear, config.loader])
        if key not in self._probed:
            self._probed[key] = read_probe_data(config, self.of(config))
        return self._probed[key]


def _earlier_list(config: RunConfig, out: Path) -> SplitList | None:
    """Return the division that the runs of a comparison which goes on have, where they read the same data."""
    for path in sorted(out.glob(f"*/{SPLIT_NAME}")):
        before = read_config(path.parent)
        same_data = Path(before.data).resolve() == Path(config.data).resolve()
        same_division = all(getattr(before.loader, name) == getattr(config.loader, name) for name in _DIVISION)
        if same_data and same_division:
            return read_split_list(path.parent)
    return None
