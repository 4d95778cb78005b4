"""What a run is described by. Importing this module imports no torch."""

import json
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from crossdistill.errors import UserError, unknown

STEMS = ("auto", "native", "small")
PRECISIONS = ("32", "bf16", "16")
STRATEGIES = ("ddp", "fsdp")
CACHE_DTYPES = ("float16", "float32")
_MOST_VIEWS = 10
_C = TypeVar("_C")
CROPS = ("auto", "resized", "padded", "none")


def _at_least(section: str, values: dict[str, float | None], low: float) -> None:
    for name, value in values.items():
        if value is not None and not value >= low:
            raise UserError(f"{section}{name} is {value}; it must be at least {low:g}")


def _within(section: str, values: dict[str, float | None], low: float, high: float) -> None:
    for name, value in values.items():
        if value is not None and not low <= value <= high:
            raise UserError(f"{section}{name} is {value}; it must lie between {low:g} and {high:g}")


@dataclass(frozen=True)
class ModelConfig:
    """How the two models are built."""

    stem: str = "auto"
    """"small" gives convolutional networks a stem without early strides and transformers a fitting patch size;
    "native" leaves them; "auto" is small for images of at most 64 px where no pretrained weights are asked for."""
    student_pretrained: bool = False
    """Start the student from timm's (or torchvision's) pretrained weights."""
    teacher_pretrained: bool = False
    student_checkpoint: str | None = None
    """Weights file or finished run the student starts from."""
    student_args: dict[str, Any] = field(default_factory=dict)
    """Passed to the student's constructor, e.g. {drop_path_rate: 0.1}."""
    teacher_args: dict[str, Any] = field(default_factory=dict)
    teacher_img_size: int | None = None
    """Side in pixels the teacher looks at; None takes the student's. A finished run knows its own."""
    student_stages: list[str] | None = None
    """Four module names, shallow to deep, where the stages cannot be found."""
    teacher_stages: list[str] | None = None

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise unknown("value of model.stem", self.stem, STEMS)


@dataclass(frozen=True)
class LoaderConfig:
    """How the data is read."""

    batch_size: int = 128
    """Images per step on each device."""
    workers: int = 0
    """Processes that decode images; 0 decodes in the training process. Unused for resident images."""
    resident: bool | None = None
    """Keep the images on the device as bytes and augment them there, a batch at a time; null does so for images of at
    most 64 px where padded crops and flips are all the augmentation there is."""
    views: int | None = None
    """Different augmented views of each image, which take turns over the epochs; null makes new ones in every epoch."""
    view_seed: int = 0
    """Seed of a limited number of views; apart from `seed`, so that runs of several seeds share a teacher cache."""
    val_fraction: float = 0.1
    """Share of the training split held out to choose the model, where the data has no validation split of its own."""
    split_seed: int = 0
    """Seed of the held-out choice; apart from `seed`, so that all runs share one split."""
    max_train: int | None = None
    """Train on this many images only, a fixed random choice; None takes all."""
    image_column: str | None = None
    """Parquet column of the images; None takes the first image column of the schema."""
    label_column: str | None = None
    """Parquet column of the labels; None takes the first class label of the schema."""
    root: str = "data"
    """Folder that torch/<name> sets are kept in, or downloaded to."""
    download: bool = True
    """Download a torch/<name> set that is not there."""
    in_chans: int | None = None
    """Channels to convert images to, 1 or 3; None keeps the data's."""

    def __post_init__(self) -> None:
        _at_least("loader.", {"batch_size": self.batch_size, "max_train": self.max_train}, 2)
        _at_least("loader.", {"workers": self.workers, "view_seed": self.view_seed}, 0)
        _at_least("loader.", {"views": self.views}, 1)
        if not 0 < self.val_fraction < 1:
            raise UserError(f"loader.val_fraction is {self.val_fraction}; it must lie between 0 and 1")
        if self.in_chans not in (None, 1, 3):
            raise UserError(f"loader.in_chans is {self.in_chans}; it must be 1 or 3")


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are changed; all of it is timm's and torchvision's."""

    crop: str = "auto"
    """"resized" (random resized crop), "padded" (random crop after padding by an eighth), "none"; "auto" is padded for
    images of at most 64 px, else resized."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area range of the resized crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.0
    """Strength of colour jitter; unused with auto_augment."""
    auto_augment: str | None = None
    """timm policy, e.g. rand-m9-mstd0.5-inc1."""
    erasing: float = 0.0
    """Probability of random erasing."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""
    crop_pct: float | None = None
    """Share of the resized image that evaluation looks at; None: 1 for at most 64 px, else 0.875."""

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise unknown("value of augment.crop", self.crop, CROPS)
        _within("augment.", {"hflip": self.hflip, "erasing": self.erasing}, 0, 1)
        _within("augment.", {"crop_pct": self.crop_pct}, 0.1, 1)
        _at_least("augment.", {"mixup": self.mixup, "cutmix": self.cutmix, "color_jitter": self.color_jitter}, 0)
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augment.scale is {self.scale}; it must be two shares of the area, rising, in (0, 1]")


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule, by timm's names."""

    name: str = "adamw"
    lr: float = 1e-3
    """Peak learning rate for the whole batch."""
    weight_decay: float = 0.05
    momentum: float = 0.9
    """For optimisers that have it."""
    schedule: str = "cosine"
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up; shortened to a tenth of the run where the run is short."""
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    clip_grad: float | None = None
    """Largest gradient norm; None does not clip."""
    ema: float | None = None
    """Decay of the averaged student, which is then the one validated and kept; None keeps no average."""
    label_smoothing: float = 0.0
    """Smoothing of the labels in the task loss."""
    task_weight: float = 1.0
    """Factor of the task loss (cross entropy)."""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UserError(f"optim.lr is {self.lr}; it must be positive")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise UserError(f"optim.clip_grad is {self.clip_grad}; it must be positive, or null for none")
        non_negative = ("weight_decay", "warmup_epochs", "warmup_lr", "min_lr", "task_weight")
        _at_least("optim.", {name: getattr(self, name) for name in non_negative}, 0)
        _within("optim.", {"ema": self.ema, "label_smoothing": self.label_smoothing}, 0, 1)


@dataclass(frozen=True)
class EngineConfig:
    """What Lightning runs on."""

    accelerator: str = "auto"
    """auto, cpu, gpu, ..."""
    devices: int = 1
    """Devices per node; -1 takes all."""
    nodes: int = 1
    strategy: str = "ddp"
    """How several devices train: "ddp" (each holds all weights) or "fsdp" (what trains is divided over them)."""
    shard_teacher: bool = False
    """Divide the teacher's weights over the devices too; otherwise each holds the whole teacher."""
    precision: str = "32"
    """32, bf16 or 16 (mixed)."""
    compile: bool = False
    """torch.compile for the training step: student, teacher and method as one graph."""
    channels_last: bool = False
    accumulate: int = 1
    """Batches per optimiser step."""
    sync_batchnorm: bool = False
    """The student's batch norms over all devices (GPUs only). The methods' own statistics always are."""
    threads: int | None = None
    """Threads of torch on the CPU; None leaves torch's choice."""
    log_every: int = 20
    """Steps between two log rows."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown("value of engine.precision", self.precision, PRECISIONS)
        if self.strategy not in STRATEGIES:
            raise unknown("value of engine.strategy", self.strategy, STRATEGIES)
        counts = {"nodes": self.nodes, "accumulate": self.accumulate, "log_every": self.log_every}
        _at_least("engine.", {**counts, "threads": self.threads}, 1)
        if self.accelerator == "cpu" and (self.precision == "16" or self.sync_batchnorm):
            raise UserError("engine.precision 16 and engine.sync_batchnorm need a GPU; on the CPU use bf16 or 32")
        if self.devices == 0 or self.devices < -1:
            raise UserError(f"engine.devices is {self.devices}; it must be at least 1, or -1 for all")


@dataclass(frozen=True)
class RunConfig:
    """One training run: a student, a method, a teacher, the data and how to train."""

    student: str = "resnet18"
    """timm name, torchvision:<name>, or package.module:factory."""
    teacher: str | list[str] | None = None
    """The same, or several (the flag once for each); None takes the models of the runs given as teacher_checkpoint."""
    method: str = "rsd"
    """See `crossdistill methods`."""
    data: str = "digits"
    """digits, a folder of images in class folders, a folder of parquet shards, or torch/<name>."""
    out: str | None = None
    """Folder of this run; None makes one under runs/."""
    teacher_checkpoint: str | list[str] | None = None
    """The teacher's weights: a file, or the folder of a finished run; one for each of several teachers."""
    teacher_weights: list[float] | str | None = None
    """How several teachers are mixed: a number for each, "confidence" (image by image), or null for equal shares."""
    epochs: int = 30
    seed: int = 0
    img_size: int | None = None
    """Side in pixels the student trains at; None takes the data's own size up to 64 px, else the model's."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options by method, e.g. --options.rsd.kappa 0.02; see `crossdistill methods NAME`."""
    teacher_training: dict[str, Any] = field(default_factory=dict)
    """What differs from this config when the teacher itself is trained, by dotted name, e.g. {epochs: 50}."""
    cache: str | None = None
    """Teacher cache: null runs the teacher in every step; "auto" finds or makes the one that fits under runs/cache;
    else the folder of one. Without loader.views it holds as many views as there are epochs, at most 10."""
    cache_top_k: int | None = None
    """Logits stored per view, with the mass of all others, which those share evenly; null stores all. For 1000 classes
    and more. What is kept is exact for a softmax at temperature 1 only."""
    cache_dtype: str = "float16"
    """What the cache stores numbers in: float16 or float32."""
    trust_teacher: bool = False
    """Go on with a teacher whose accuracy on held-out images is near chance."""
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
        return self.cache is not None

    @property
    def views(self) -> int | None:
        """Number of different views of each image; None for a new one in every epoch."""
        return min(self.epochs, _MOST_VIEWS) if self.cached and self.loader.views is None else self.loader.views

    def __post_init__(self) -> None:
        _at_least("", {"epochs": self.epochs, "img_size": self.img_size}, 1)
        _at_least("", {"seed": self.seed}, 0)
        if self.engine.strategy == "fsdp" and self.optim.ema is not None:
            raise UserError("optim.ema keeps a whole copy of the student; with engine.strategy fsdp leave it out")
        if self.cache_dtype not in CACHE_DTYPES:
            raise unknown("value of cache_dtype", self.cache_dtype, CACHE_DTYPES)
        if self.cached and (self.augment.mixup or self.augment.cutmix):
            raise UserError(
                "mixup and CutMix cannot be had with a teacher cache: what the teacher says of a mixed image is not "
                "the mixture of what it says of the two; turn them off, or leave --cache out"
            )
        if (self.augment.mixup or self.augment.cutmix) and self.loader.batch_size % 2:
            raise UserError(
                f"mixup and CutMix pair the images of a batch; loader.batch_size {self.loader.batch_size} is odd"
            )


def _listed(given: str | list[str] | None) -> list[str | None]:
    return [] if given is None else [given] if isinstance(given, str) else list(given)


def override(config: _C, changes: dict[str, Any], named: str) -> _C:
    """Give the config with other values, by dotted name or nested. Raises UserError for a wrong name or type."""
    nested: dict[str, Any] = {}
    hints = get_type_hints(type(config))
    for key, value in changes.items():
        head, _, rest = key.partition(".")
        if head not in hints:
            raise unknown(f"setting in {named}", head, hints)
        now = nested.get(head, getattr(config, head))
        if is_dataclass(now):
            inner = {rest: value} if rest else value
            if not isinstance(inner, dict):
                raise UserError(f"{named}: {head} is a group of settings, not {value!r}")
            nested[head] = override(now, inner, f"{named}.{head}")
            continue
        hint = hints[head]
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        plain = tuple(get_origin(kind) or kind for kind in kinds)
        if tuple in plain and isinstance(value, list):
            value = tuple(value)
        if float in plain and type(value) is int:
            value = float(value)
        if type(value) not in plain:
            raise UserError(f"{named}: {head} is {value!r}; it must be of type {hint}")
        nested[head] = value
    return replace(config, **nested)  # type: ignore[type-var]


def parse_value(text: str) -> Any:
    """Read a value from the command line: JSON (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Give the config as plain data, from which the same run can be started."""
    plain = asdict(config)
    plain["augment"]["scale"] = list(config.augment.scale)
    return plain
