"""How a model does on corrupted images, and on images of no class that it knows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from crossdistill.config import LoaderConfig, RunConfig
from crossdistill.data import Images
from crossdistill.data.loaders import evaluation_loader
from crossdistill.data.splits import load_all
from crossdistill.errors import UserError
from crossdistill.evaluation.accuracy import evaluate, ood_auroc
from crossdistill.evaluation.corruptions import CORRUPTIONS, SEVERITIES, Corrupted
from crossdistill.progress import Tracked
from crossdistill.types import BackboneOutput, BackboneSpec


@dataclass(frozen=True)
class RobustnessScorer:
    """A classifier in eval mode; `transform` makes tensors with the normalisation of `spec` from pictures."""

    model: Callable[[Tensor], BackboneOutput]
    transform: Callable[[Any], Tensor]
    spec: BackboneSpec
    loader: LoaderConfig
    device: torch.device
    console: Console
    name: str = ""
    """Stands in front of the lines of progress."""

    def corrupted(self, images: Images, num_classes: int) -> dict[str, list[float]]:
        """Return the top-1 on corrupted images, percent, at each severity, by the name of the corruption."""
        return {
            kind: [self._top1(images, num_classes, kind, severity) for severity in SEVERITIES] for kind in CORRUPTIONS
        }

    def _top1(self, images: Images, num_classes: int, kind: str, severity: int) -> float:
        seen = Corrupted(self.transform, self.spec, kind, severity)
        batches = self._batches(images, seen, f"{kind}, severity {severity}")
        return evaluate(self.model, batches, num_classes, self.device)["top1"]

    def told_apart(self, images: Images, others: Sequence[Images]) -> float:
        """Return the area under the ROC curve, percent, by which the largest logit tells images from others."""
        known = self._batches(images, self.transform, "images")
        unknown = [self._batches(part, self.transform, "other images") for part in others]
        return ood_auroc(self.model, known, chain.from_iterable(unknown), self.device)

    def _batches(self, images: Images, transform: Any, text: str) -> Iterable[Any]:
        made = evaluation_loader(images, transform, self.loader.batch_size, workers=self.loader.workers)
        return Tracked(made, self.console, f"{self.name}{text}")


def load_others(folder: str, config: RunConfig, channels: Literal[1, 3], console: Console) -> list[Images]:
    """Read all images of a folder, of no class of a model, and say how many they are. Raises UserError."""
    if Path(folder).resolve() == Path(config.data).resolve():
        raise UserError(f"--ood {folder!r} is the data itself; give images of no class of the model")
    parts = load_all(folder, config.loader, channels)
    count = sum(len(part) for part in parts)
    console.print(f"other images: {count:,} of {folder}", highlight=False, markup=False, soft_wrap=True)
    return parts
