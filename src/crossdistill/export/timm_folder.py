"""The student alone, in a folder that timm loads."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from timm.models._hub import save_config_for_hf

from crossdistill.backbones import Backbone
from crossdistill.backbones.args import CONFIG_FILE, WEIGHTS_FILE, weights_digest
from crossdistill.config import AugmentConfig
from crossdistill.data.picture import RULES
from crossdistill.data.transforms import preprocessing
from crossdistill.errors import UserError
from crossdistill.files import write_whole


def save_student(
    backbone: Backbone,
    folder: Path,
    class_names: tuple[str, ...],
    look: dict[str, Any] | None = None,
    weights_file: str = WEIGHTS_FILE,
) -> None:
    """Write weights and config.json into `folder`. Raises UserError where they cannot be written.

    `look` is how a tensor is made of an image (`crossdistill.data.transforms.preprocessing`).

    `timm.create_model("local-dir:<folder>", pretrained=True)` loads a timm model; `crossdistill.load_backbone(folder)`
    loads any. A student with a small stem needs `import crossdistill.backbones` before timm knows its architecture.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in backbone.model.state_dict().items()}
    try:
        # Written by us, since safetensors makes files that only their owner can read.
        write_whole(folder / weights_file, save(tensors, metadata={"format": "pt"}))
    except OSError as error:
        raise UserError(f"cannot write {str(folder / weights_file)!r}: {error.strerror or error}") from error
    spec, path = backbone.spec, folder / CONFIG_FILE
    look = look or preprocessing(AugmentConfig(), spec, backbone.img_size)
    about = {
        "label_names": list(class_names),
        "crossdistill": asdict(backbone.args),
        "pictures": RULES,
        "weights_sha256": weights_digest(folder),
    }
    if ":" in spec.name:
        text = json.dumps({"num_classes": spec.num_classes, **about, "preprocessing": look}, indent=2)
        path.write_text(text, encoding="utf-8")
        return
    save_config_for_hf(backbone.model, str(path), model_config=about, data_config=look)
