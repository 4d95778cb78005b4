"""The settings of one training run."""

from dataclasses import field
from typing import Annotated, Any, Literal

from crossdistill.config.data import AugmentConfig, LoaderConfig
from crossdistill.config.engine import EngineConfig
from crossdistill.config.model import ModelConfig
from crossdistill.config.optim import OptimConfig
from crossdistill.config.validation import Off, OptionalPositiveInt, PositiveInt, Seed, settings
from crossdistill.errors import UserError
from crossdistill.image_size import OptionalSizeText

Value = int | float | bool | None | str | list[Any]


@settings
class RunConfig:
    """One training run: a student, a method, a teacher, the data and how to train."""

    student: str = "resnet18"
    """timm name, torchvision:<name>, or package.module:factory."""
    teacher: str | list[str] | None = None
    """The same, or a list of several; null uses the models of the runs given as teacher_checkpoint."""
    method: str = "rsd"
    """See `crossdistill methods`."""
    data: str = "digits"
    """digits, a folder of images in class folders, a folder of parquet or tar shards, a text or CSV file that lists
    images, torch/<name>, or hfds/<name>."""
    out: str | None = None
    """Folder of this run; null makes one under runs/."""
    teacher_checkpoint: str | list[str] | None = None
    """The teacher's weights: a file, or the folder of a finished run; one for each of several teachers."""
    teacher_weights: list[float] | Literal["confidence"] | None = None
    """How several teachers are mixed: a number for each, "confidence" (image by image), or null for equal weights."""
    epochs: PositiveInt = 30
    """Passes over the training images."""
    seed: Seed = 0
    """Seed of initial weights, order of images, dropout and unlimited views."""
    img_size: OptionalSizeText = None
    """Side in pixels of the student's input, or height and width, e.g. 256x128; null uses the data's own size up to
    64 px, else the model's."""
    probe_data: str | None = None
    """Labelled images that score the embedding of a run without labels by its nearest neighbours; the epoch with the
    highest accuracy on their held-out part is kept. Null keeps the one with the lowest held-out loss."""
    probe_every: OptionalPositiveInt = None
    """Epochs between two scores of the embedding by nearest neighbours, on probe_data or on the run's own labelled
    images (val/knn in the log, and in the report), and in the last one; null scores every epoch with probe_data,
    else none."""
    probe_linear: bool = False
    """Fit a linear classifier to the embedding at the same epochs (val/linear_probe); seconds to minutes each time."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of methods that differ from their defaults, by method; see `crossdistill methods NAME`."""
    teacher_training: dict[str, Value] = field(default_factory=dict)
    """Settings that differ from these when the teacher itself is trained, by dotted name, e.g. {optim.lr: 1e-4}."""
    cache: Annotated[str, Off] = "off"
    """Teacher cache: "off" runs the teacher in every step; "auto" finds or makes the matching one under runs/cache; a
    path is the folder of one. Without loader.views it holds as many views as there are epochs, at most 10."""
    cache_top_k: OptionalPositiveInt = None
    """Logits stored for each view, with the mass of all others, which is divided evenly among them; null stores all.
    For 1000 classes and more. The stored values are exact for a softmax at temperature 1 only."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """Precision of the numbers in the cache."""
    role: Literal["student", "teacher"] = "student"
    """What the trained model is called. A teacher with pretrained weights has their input size by default."""
    trust_teacher: bool = False
    """Continue with a teacher whose accuracy on held-out images is near chance, or whose weights are random."""
    trust_code: bool = False
    """Import code (package.module:name) that is named by the file of a run, and not on the command line or in a recipe.
    A run's own file cannot set this."""
    model: ModelConfig = field(default_factory=ModelConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    @property
    def teachers(self) -> list[tuple[str | None, str | None]]:
        """Name and checkpoint of every teacher; either may be None."""
        names, checkpoints = _listed(self.teacher), _listed(self.teacher_checkpoint)
        if names and checkpoints and len(names) != len(checkpoints):
            raise UserError(f"{len(names)} teachers but {len(checkpoints)} checkpoints; give one for each, in order")
        count = max(len(names), len(checkpoints))
        return list(zip(names or [None] * count, checkpoints or [None] * count, strict=True))

    @property
    def cached(self) -> bool:
        """Whether the teacher's outputs are stored and replayed."""
        return self.cache != "off"

    def __post_init__(self) -> None:
        if self.probe_linear and self.probe_every is None and self.probe_data is None:
            raise UserError("probe_linear has no effect without probe_every or probe_data; give one of them")
        if self.engine.strategy == "fsdp" and self.optim.ema is not None:
            raise UserError("optim.ema keeps a full copy of the student, which engine.strategy fsdp does not allow")
        if self.cached and self.augment.mixes:
            raise UserError(
                "mixup and CutMix cannot be used with a teacher cache: the teacher's output for a mixed image is not "
                "the mixture of its outputs for the two images; turn them off, or leave --cache out"
            )
        if self.augment.mixes and self.loader.batch_size % 2:
            raise UserError(
                f"mixup and CutMix pair the images of a batch; loader.batch_size {self.loader.batch_size} is odd"
            )


def _listed(given: str | list[str] | None) -> list[str | None]:
    return [] if given is None else [given] if isinstance(given, str) else list(given)
