"""A model by its name, to be scored with its weights: its own, pretrained ones, or those of a file."""

from typing import Any

from crossdistill.backbones import Backbone, create_backbone
from crossdistill.backbones.build import classes_of_weights
from crossdistill.config import ModelConfig
from crossdistill.config.code import is_code, is_transformers
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize


def check_has_weights(name: str, checkpoint: str | None, model: ModelConfig) -> None:
    """Raise UserError for a model that would have random weights."""
    own_code = is_code(name)
    if checkpoint is None and not is_transformers(name) and (own_code or not model.student_pretrained):
        raise UserError(
            f"{name!r} is not the folder of a run; a model by name needs weights: --checkpoint FILE"
            + ("" if own_code else ", or --model.student-pretrained true")
        )


def named_model(
    name: str,
    checkpoint: str | None,
    model: ModelConfig,
    img_size: ImageSize | str | None,
    in_chans: int,
    *,
    small: bool,
) -> Backbone:
    """Build a model with the classes of its weights; `small` builds it with the small stem. Raises UserError."""
    built: dict[str, Any] = dict(
        img_size=img_size,
        in_chans=in_chans,
        checkpoint=checkpoint,
        checkpoint_key=model.student_checkpoint_key,
        small_images=small,
        stages=model.student_stages,
        **model.student_args,
    )
    classes = classes_of_weights(name, **built) or 0
    return create_backbone(name, classes, pretrained=model.student_pretrained, **built)
