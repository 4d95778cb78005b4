"""What is shown of a run that is inspected: nearest images, and the classes that are confused."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from crossdistill.data import Images
from crossdistill.report.inspection import Confusion, Neighbours, Picture
from crossdistill.types import BackboneOutput

_CONFUSIONS = 6
_EXAMPLES, _NEAREST = 6, 5
_SIDE = 112
"""Pixels of a small picture along its longer side."""

Evidence = Callable[[Image.Image, int], Tensor]
"""Returns the evidence for a class in an image, on a grid."""


@dataclass
class Seen:
    """What a model returned for all images."""

    logits: list[Tensor] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)

    def add(self, output: BackboneOutput) -> None:
        """Add a batch."""
        self.embeddings.append(output.embedding.float().cpu())
        if output.logits is not None:
            self.logits.append(output.logits.float().cpu())

    @property
    def classes(self) -> NDArray[np.int64]:
        """The predicted classes (N,)."""
        return torch.cat(self.logits).argmax(dim=1).numpy()

    def nearest(self, count: int) -> NDArray[np.int64]:
        """Return the nearest other images of each image by cosine, (N, count)."""
        rows = torch.nn.functional.normalize(torch.cat(self.embeddings), dim=1)
        similar = (rows @ rows.T).fill_diagonal_(-2)
        return similar.topk(min(count, len(rows) - 1), dim=1).indices.numpy()


def neighbours(seen: dict[str, Seen], images: Images, names: Sequence[str]) -> list[Neighbours]:
    """Show some images with the nearest others in each embedding."""

    def picture(index: int) -> Picture:
        name = names[images.labels[index]] if names else ""
        return {"image": _png(images.read(index)), "caption": name}

    nearest = {name: one.nearest(_NEAREST) for name, one in seen.items()}
    examples = np.linspace(0, len(images) - 1, min(_EXAMPLES, len(images))).round().astype(int).tolist()
    found = []
    for index in examples:
        example: Neighbours = {
            "image": picture(index),
            "student": [picture(int(other)) for other in nearest["student"][index]],
        }
        if "teacher" in nearest:
            example["teacher"] = [picture(int(other)) for other in nearest["teacher"][index]]
        found.append(example)
    return found


def confusions(
    seen: dict[str, Seen],
    images: Images,
    labels: NDArray[np.int64],
    names: Sequence[str],
    evidence: dict[str, Evidence],
) -> list[Confusion]:
    """Return the pairs of classes that the student confuses most, each with its most certain error.

    `evidence` has the student, and the teacher where it has the same classes.
    """
    predicted = seen["student"].classes
    certain = torch.cat(seen["student"].logits).softmax(dim=1).amax(dim=1).numpy()
    pairs = Counter((int(a), int(b)) for a, b in zip(labels, predicted, strict=True) if a != b)
    found = []
    for (truth, wrong), count in pairs.most_common(_CONFUSIONS):
        members = np.flatnonzero((labels == truth) & (predicted == wrong))
        index = int(members[certain[members].argmax()])
        image = images.read(index)
        one: Confusion = {"truth": names[truth], "predicted": names[wrong], "count": count, "pictures": []}
        one["pictures"].append({"image": _png(image), "caption": f"{names[truth]}, taken for {names[wrong]}"})
        for who, found_in in evidence.items():
            number = int(seen[who].classes[index])
            one["pictures"].append(_overlay(image, found_in(image, number), f"{who}: {names[number]}"))
        if "teacher" in evidence:
            one["teacher_count"] = int(((labels == truth) & (seen["teacher"].classes == wrong)).sum())
        found.append(one)
    return found


def _overlay(picture: Image.Image, evidence: Tensor, caption: str) -> Picture:
    """Colour a picture by the evidence in it: red for, blue against the class, relative to the largest."""
    values = (evidence / evidence.abs().max().clamp_min(1e-6)).numpy()
    colours = matplotlib.colormaps["coolwarm"]((values + 1) / 2)[:, :, :3]
    layer = Image.fromarray((255 * colours).astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    return {"image": _png(Image.blend(picture.convert("L").convert("RGB"), layer, 0.5)), "caption": caption}


def _png(picture: Image.Image) -> str:
    small = picture.convert("RGB")
    scale = _SIDE / max(small.size)
    small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
