"""What a Hugging Face transformers model states: its config, its image processor and its weights.

No code of a repository is run: `trust_remote_code` is never on.
"""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from crossdistill.errors import UserError, kind_and_line
from crossdistill.image_size import ImageSize, image_size

PREFIX = "hf:"
_HEADED = "ForImageClassification"
_ATTENTION = ("eager", "sdpa", "flash_attention_2")
"""Attention that is part of transformers; other names are fetched from the hub as code."""
_TOWERS = ("vision_model", "vision_tower")
"""Where models of images and text keep the part that reads images."""


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError("hf: models need transformers: pip install 'crossdistill[hf]'") from error
    return transformers


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence the notes and bars of transformers, and turn what it raises into a UserError."""
    library = _library()
    log = library.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    except Exception as error:  # the hub, a damaged file and an unknown architecture raise many kinds
        place = name.removeprefix(PREFIX)
        raise UserError(
            f"model {name!r} cannot be loaded by transformers ({kind_and_line(error)}); {place!r} must be the name "
            "of a model on the hub, or a folder with its config.json and weights"
        ) from error
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def read_config(name: str) -> Any:
    """Read a model's config. Raises UserError."""
    library = _library()
    with _quiet(name):
        return library.AutoConfig.from_pretrained(name.removeprefix(PREFIX), trust_remote_code=False)


def vision_config(config: Any) -> Any:
    """Return the part of a config that describes the network that reads images."""
    return getattr(config, "vision_config", config)


def is_headed(config: Any) -> bool:
    """Return whether the weights have a classifier."""
    return any(_HEADED in kind for kind in config.architectures or ())


def read_processor(name: str) -> dict[str, Any]:
    """Read the settings of a model's image processor. Raises UserError where there are none."""
    library = _library()
    try:
        with _quiet(name):
            found, _ = library.ImageProcessingMixin.get_image_processor_dict(name.removeprefix(PREFIX))
    except UserError as error:
        raise UserError(
            f"model {name!r} has no preprocessor_config.json, so its normalisation is not known; save its image "
            "processor into the folder (processor.save_pretrained(FOLDER))"
        ) from error
    return dict(found)


def processor_size(name: str, config: Any, processor: dict[str, Any]) -> ImageSize:
    """Return the size of the images that the processor makes. Raises UserError."""
    crops = processor.get("do_center_crop", False) and "crop_size" in processor
    stated: Any = processor.get("crop_size" if crops else "size")
    if stated is None:
        stated = getattr(vision_config(config), "image_size", None)
    if isinstance(stated, dict):
        named = {key: int(side) for key, side in stated.items() if key in ("height", "width", "shortest_edge") and side}
        if named.keys() == {"height", "width"}:
            stated = (named["height"], named["width"])
        else:
            stated = next(iter(named.values())) if len(set(named.values())) == 1 else None
    if stated is None:
        raise UserError(f"model {name!r} states no input size; give img_size (--model.teacher-img-size)")
    return image_size(stated)


def read_look(config: Any, processor: dict[str, Any]) -> dict[str, Any]:
    """Return the normalisation of pixels in [0, 1], and the class names, in the terms of timm."""
    scale = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.get("do_normalize", "image_mean" in processor):
        mean, std = processor["image_mean"], processor["image_std"]
    flips = bool(processor.get("do_flip_channel_order", False))
    order = -1 if flips else 1
    names = [config.id2label[number] for number in sorted(config.id2label)] if is_headed(config) else []
    stated = any(label != f"LABEL_{number}" for number, label in enumerate(names))
    return {
        "mean": tuple(value / scale for value in mean)[::order],
        "std": tuple(value / scale for value in std)[::order],
        "label_names": names if stated else None,
        "reads_bgr": flips,
    }


def load_body(name: str, config: Any, model_args: dict[str, Any]) -> tuple[nn.Module, bool]:
    """Load the network that reads images, and whether it has a pooler. Raises UserError for weights that are missing.

    transformers itself would draw missing weights at random. `model_args` are settings of the config: other arguments
    of `from_pretrained` load weights or code in other ways, and the file of a run may state them.
    """
    library = _library()
    known = config.to_dict()
    for key, value in model_args.items():
        if key not in known and not (key == "attn_implementation" and value in _ATTENTION):
            raise UserError(f"model {name!r}: {key!r} = {value!r} is not a setting of its config")
    kind = library.AutoModelForImageClassification if is_headed(config) else library.AutoModel
    with _quiet(name):
        model, report = kind.from_pretrained(
            name.removeprefix(PREFIX),
            trust_remote_code=False,
            output_loading_info=True,
            dtype=torch.float32,
            **model_args,
        )
    tower = next((one for one in _TOWERS if not is_headed(config) and hasattr(model, one)), None)
    missing = sorted(key for key in report["missing_keys"] if tower is None or key.startswith(f"{tower}."))
    pools = not any("pooler." in key for key in missing)
    absent = [key for key in missing if "pooler." not in key] + [str(key) for key in report["mismatched_keys"]]
    if absent:
        raise UserError(f"model {name!r} lacks weights that it needs, {absent[0]} and {len(absent) - 1} more")
    body: Any = model if tower is None else model.get_submodule(tower)
    if "pixel_values" not in inspect.signature(body.forward).parameters:
        raise UserError(f"model {name!r} ({type(model).__name__}) does not read images alone; give one that does")
    return body, pools
