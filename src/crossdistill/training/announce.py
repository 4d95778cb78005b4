"""What is printed before training: the model and the data, and the settings that have no or another effect."""

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from crossdistill.config import RunConfig
from crossdistill.data import ImageData
from crossdistill.distiller import Distiller
from crossdistill.evaluation.cost import count_parameters
from crossdistill.image_size import written
from crossdistill.training.weights import student_weights_note

_MANY_LEFT_OUT = 0.1
"""Share of the training images above which a note says that an epoch leaves them out."""


def label_of(config: RunConfig) -> str:
    """Return what a run is called in messages: its method, or "teacher"."""
    return "teacher" if config.role == "teacher" else config.method


@rank_zero_only
def announce(config: RunConfig, data: ImageData, distiller: Distiller, world: int, console: Console) -> None:
    """Print which model is trained on which data, and which settings have no effect."""
    student = distiller.student
    notes = [_batches_note(config, len(data.train), world)]
    who = "teacher" if config.role == "teacher" else "student"
    notes += [f"{who}: {note}" for note in (student.note, student_weights_note(config)) if note]
    if config.augment.mixes and distiller.needs.labels:
        notes.append(f"{config.method} reads one class of a mixed image, the one with the larger share")
    notes += [
        f"options.{name}.weight has no effect, since optim.balance finds the factor of {name}; --optim.balance null "
        "uses the weight"
        for name in distiller.balanced_weights()
    ]
    about = (
        f"{label_of(config)}: {student.spec.name} ({count_parameters(student) / 1e6:.2f} M) on {data.name}, "
        f"{len(data.train)} training, {len(data.val)} validation and {len(data.test)} test images at "
        f"{written(student.img_size)} px"
    )
    for line in (*(f"note: {note}" for note in notes if note), about):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _batches_note(config: RunConfig, images: int, world: int) -> str:
    """Say how many images an epoch leaves out, where they are many: its batches are whole."""
    batch = config.loader.batch_size * world
    if batch > images:
        return f"a batch of {batch} is more than the {images} training images"
    left = images % batch
    if config.loader.unlabelled is not None or left <= _MANY_LEFT_OUT * images:
        return ""
    return (
        f"training batches are whole ({batch} images), so an epoch leaves out {left} of the {images} training images, "
        "others in each epoch"
    )
