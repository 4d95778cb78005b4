"""The student alone, in a folder that timm loads."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from crossdistill.backbones import Backbone
from crossdistill.backbones.args import CONFIG_FILE, WEIGHTS_FILE
from crossdistill.errors import UserError, first_line


def save_student(backbone: Backbone, folder: Path, class_names: tuple[str, ...]) -> None:
    """Write weights and config.json into `folder`. Raises UserError where they cannot be written.

    `timm.create_model("local-dir:<folder>", pretrained=True)` loads a timm model; `crossdistill.load_backbone(folder)`
    loads any. A student with a small stem needs `import crossdistill.backbones` before timm knows its architecture.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in backbone.model.state_dict().items()}
    try:
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    except SafetensorError as error:  # a full disk, among others
        raise UserError(f"cannot write {str(folder / WEIGHTS_FILE)!r}: {first_line(error)}") from error
    spec, path = backbone.spec, folder / CONFIG_FILE
    about = {"label_names": list(class_names), "crossdistill": asdict(backbone.args)}
    if ":" in spec.name:
        path.write_text(json.dumps({"num_classes": spec.num_classes, **about}, indent=2))
        return
    look = dict(input_size=(spec.in_chans, backbone.img_size, backbone.img_size), mean=spec.mean, std=spec.std)
    save_config_for_hf(backbone.model, str(path), model_config=about, data_config=look)
