"""CRD (ICLR 2020): the embedding of the same image in the other network against those of other images."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import override

from crossdistill.backbones import Backbone
from crossdistill.config.validation import Fraction, NonNegative, OptionalPositiveInt, PositiveInt, settings
from crossdistill.distributed import gather_detached
from crossdistill.errors import UserError
from crossdistill.losses import hard_labels
from crossdistill.losses.crd import crd_loss, crd_normaliser, crd_similarities
from crossdistill.methods.base import Method
from crossdistill.types import BackboneOutput, Needs, Reads

_STRIDE = 1_000_003
"""A prime by which the negatives move from step to step."""


@torch.library.custom_op("crossdistill::read_memory", mutates_args=())
def read_memory(memory: Tensor, index: Tensor) -> Tensor:
    """Copy rows of a buffer that the same step changes later.

    An operator of its own, because torch.compile may repeat a plain read in the backward pass, after the change, and
    return wrong gradients (pytorch/pytorch#197039).
    """
    return memory[index]


@read_memory.register_fake
def _(memory: Tensor, index: Tensor) -> Tensor:
    return memory.new_empty(index.shape + memory.shape[1:])


@settings
class CRDOptions:
    """Options of `crd`."""

    images: OptionalPositiveInt = None
    """N, training images; `fit` sets it."""
    width: PositiveInt = 128
    """Width that both embeddings are projected to; >= 1."""
    negatives: PositiveInt = 16_384
    """K, other images that each is compared with; at most N are used."""
    temperature: Annotated[float, Field(strict=True, ge=0.02)] = 0.07
    """T, divisor of similarities; >= 0.02, since exp(1 / T) overflows float32 below 1 / 88."""
    momentum: Fraction = 0.5
    """Share of the old embedding when one in the memory is updated; in [0, 1]."""
    weight: NonNegative = 0.8
    """Factor of the term beside the task loss; >= 0. Unused where optim.balance finds the factor."""


class CRD(Method):
    """Contrast against a memory of the embeddings of all training images, in both directions.

    For each image the positive is its own embedding of the other network, and the negatives are those of other images
    of other classes, all read from the memory, as in the authors' code. All images of a step share the negatives, which
    are spread evenly over the training set and change from step to step: one product of matrices replaces 16,384 rows
    for each image. The memory is updated with the images of all processes.

    Source: arXiv 1910.10699.
    """

    Options: ClassVar[type] = CRDOptions
    idea: ClassVar[str] = "Tell the embedding of the same image in the other network from those of other images."
    paper: ClassVar[str] = "CRD, ICLR 2020, arXiv 1910.10699"
    needs = Needs(student=Reads(embedding=True), teacher=Reads(embedding=True), index=True, labels=True)
    # Digits, CNN to ViT, three seeds: 64.0% with the published weight, 87.6% balanced, 90.9% without a teacher.
    balance: ClassVar[float | None] = 1.0

    def __init__(self, options: CRDOptions, student: Backbone, teacher: Backbone) -> None:
        super().__init__(options, student, teacher)
        if options.images is None:
            raise UserError("crd: images is not set; it is the number of training images")
        self.options = options
        self.weights = {"crd": options.weight}
        self.images, self.negatives = options.images, min(options.negatives, options.images)
        self.project = nn.ModuleDict(
            {
                "student": nn.Linear(student.spec.embedding_dim, options.width),
                "teacher": nn.Linear(teacher.spec.embedding_dim, options.width),
            }
        )
        bound = (3 / options.width) ** 0.5
        for side in ("student", "teacher"):
            memory = torch.empty(options.images, options.width).uniform_(-bound, bound)
            self.register_buffer(f"{side}_memory", memory)
            self.register_buffer(f"{side}_normaliser", torch.zeros(()))
        self.student_memory: Tensor
        self.teacher_memory: Tensor
        self.labels: Tensor
        self.steps: Tensor
        self.register_buffer("labels", torch.full((options.images,), -1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @override
    def forward(
        self, student: BackboneOutput, teacher: BackboneOutput, targets: Tensor, index: Tensor
    ) -> dict[str, Tensor]:
        labels = hard_labels(targets)
        others = self._chosen()
        counted = (read_memory(self.labels, others) != labels[:, None]) & (others != index[:, None])
        embeddings = {
            "student": _unit(self.project["student"](student.embedding), self.student_memory.dtype),
            "teacher": _unit(self.project["teacher"](teacher.embedding), self.teacher_memory.dtype),
        }
        losses = [
            self._contrast(embeddings["student"], "teacher", index, others, counted),
            self._contrast(embeddings["teacher"], "student", index, others, counted),
        ]
        if self.training:
            self._update(embeddings, labels, index)
        return {"crd": losses[0] + losses[1]}

    def _chosen(self) -> Tensor:
        """Choose the negatives of this step: spread evenly over the training set."""
        places = torch.arange(self.negatives, device=self.steps.device) * self.images // self.negatives
        return (places + self.steps * _STRIDE) % self.images

    def _contrast(self, anchors: Tensor, side: str, index: Tensor, others: Tensor, counted: Tensor) -> Tensor:
        """Contrast anchors (B, D) of one network with the memory of the other."""
        memory, normaliser = self.get_buffer(f"{side}_memory"), self.get_buffer(f"{side}_normaliser")
        positive = ((anchors * read_memory(memory, index)).sum(dim=1) / self.options.temperature).exp()
        negatives = crd_similarities(anchors, read_memory(memory, others), temperature=self.options.temperature)
        # The first training step decides the normaliser, as in the authors' code.
        used = torch.where(normaliser > 0, normaliser, crd_normaliser(negatives, self.images))
        if self.training:
            normaliser.copy_(used)
        return crd_loss(positive, negatives, counted, normaliser=used, noise=self.negatives / self.images)

    @torch.no_grad()
    def _update(self, embeddings: dict[str, Tensor], labels: Tensor, index: Tensor) -> None:
        index, labels = gather_detached(index), gather_detached(labels)
        for side, rows in embeddings.items():
            memory = self.get_buffer(f"{side}_memory")
            fresh = gather_detached(rows.detach())
            mixed = self.options.momentum * memory[index] + (1 - self.options.momentum) * fresh
            memory[index] = F.normalize(mixed, dim=1)
        self.labels[index] = labels
        self.steps += 1


def _unit(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return F.normalize(rows.to(dtype), dim=1)
