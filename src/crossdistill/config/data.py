"""Settings of reading and augmenting images."""

from dataclasses import replace
from typing import Any, Literal

from crossdistill.config.validation import (
    AtLeastTwo,
    Fraction,
    NonNegative,
    NonNegativeInt,
    OpenFraction,
    OptionalAtLeastTwo,
    OptionalFraction,
    OptionalPositiveInt,
    Seed,
    settings,
)
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize, sides_of

SMALL_IMAGE = 64
"""Side in pixels up to which images are small: cropped after padding, evaluated without a crop, kept on the device."""


@settings
class LoaderConfig:
    """How the data is read."""

    batch_size: AtLeastTwo = 128
    """Images per step on each device."""
    workers: NonNegativeInt = 0
    """Processes that decode images; 0 decodes in the training process. Unused for resident images."""
    resident: bool | None = None
    """Keep the images on the device as bytes and augment them there in batches; null does so for images of at most
    64 px that are augmented by padded crops and flips alone."""
    views: OptionalPositiveInt = None
    """Number of different augmented views of each image, used in turn over the epochs; null makes new ones in every
    epoch."""
    view_seed: Seed = 0
    """Seed of a limited number of views; separate from `seed`, so that runs of several seeds share a teacher cache."""
    val_fraction: OpenFraction = 0.1
    """Fraction of the training split held out to choose the model, where the data has no validation split."""
    split_seed: Seed = 0
    """Seed of the held-out choice; separate from `seed`, so that all runs share one split."""
    max_train: OptionalAtLeastTwo = None
    """Train on this many images only, a fixed random choice; null uses all."""
    labels: Literal["classes", "none"] = "classes"
    """"none" ignores labels, or reads images that have none (also a folder without class folders): only the method's
    terms are trained, the student has no classifier or that of the teacher, and the epoch with the lowest held-out
    loss is kept."""
    unlabelled: str | None = None
    """More training images, without labels or with labels that are not read (a folder, a list, ...): the method's terms
    are trained on them as well, the task loss on the labelled images alone."""
    labelled_part: OpenFraction = 0.5
    """Fraction of each batch that has labels, with `unlabelled`. An epoch has every image without a label once."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with a file that cannot be read as an image: "error" refuses the data, "skip" decodes every file once,
    and leaves out and lists those that cannot be read."""
    train_dir: str | None = None
    """Folder of the training split, inside the folder of the data; "." for class folders without splits. Null finds
    folders named train, val and test, in the usual spellings."""
    val_dir: str | None = None
    """The same for the validation split; only with train_dir."""
    test_dir: str | None = None
    """The same for the test split; only with train_dir."""
    image_column: str | None = None
    """Column of the images in parquet data, of their paths in a CSV file, or ending of their names in tar shards; null
    finds it."""
    label_column: str | None = None
    """The same for the labels; in tar shards also an entry of the file .json."""
    root: str = "data"
    """Folder that torch/<name> sets are read from, or downloaded to."""
    download: bool = True
    """Download a torch/<name> or hfds/<name> set that is not there."""
    in_chans: Literal[1, 3] | None = None
    """Channels to convert images to, 1 or 3; null keeps those of the data."""


@settings
class AugmentConfig:
    """How training images are augmented, by the transforms of timm and torchvision."""

    crop: Literal["auto", "resized", "padded", "none"] = "auto"
    """"resized" (random resized crop), "padded" (random crop after padding by an eighth), "none"; "auto" is padded for
    images of at most 64 px, else resized."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Area range of the resized crop."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    color_jitter: NonNegative = 0.0
    """Strength of colour jitter; unused with auto_augment."""
    auto_augment: str | None = None
    """timm policy, e.g. rand-m9-mstd0.5-inc1."""
    erasing: Fraction = 0.0
    """Probability of random erasing."""
    mixup: NonNegative = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix; 0 is off."""
    crop_mode: Literal["auto", "center", "squash"] = "auto"
    """How images of other proportions than the input are fitted, in training and in evaluation: "center" keeps their
    proportions, and evaluation cuts off the longer ends; "squash" shows the whole image, resized to the input. "auto"
    squashes where training does so (crop "padded" or "none"), where the input is not square, and images that are more
    than twice as long as they are short."""
    teacher_view: Literal["auto", "own", "student"] = "auto"
    """What the teacher sees: "own" is the same crop, flip and colour at the teacher's input size, made from the decoded
    image; "student" is what the student sees, resized. "auto" is own where the teacher's input is larger than the
    student's and the images are too, except with loader.resident."""
    crop_pct: OptionalFraction = None
    """Fraction of the resized image, along a side, that evaluation uses; null is 1 for at most 64 px and for squashed
    images, else 0.875."""

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def decided(self, img_size: ImageSize, *, long: bool = False) -> "AugmentConfig":
        """Return these settings with nothing left to "auto".

        `img_size` is the size of the network's input; `long` says that at least half of the images are more than twice
        as long as they are short.
        """
        height, width = sides_of(img_size)
        small = max(height, width) <= SMALL_IMAGE
        crop: Any = self.crop if self.crop != "auto" else "padded" if small else "resized"
        mode: Any = self.crop_mode
        if mode == "auto":
            mode = "squash" if crop != "resized" or long or height != width else "center"
        whole = small or mode == "squash"
        return replace(self, crop=crop, crop_mode=mode, crop_pct=self.crop_pct or (1.0 if whole else 0.875))

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(
                f"augment.scale is {self.scale}; it must be two fractions of the area in (0, 1], the smaller first"
            )
        if self.crop_pct is not None and self.crop_pct < 0.1:
            raise UserError(f"augment.crop_pct is {self.crop_pct}; it must lie between 0.1 and 1")
