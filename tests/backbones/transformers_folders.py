"""Folders of small transformers models with random weights, as `save_pretrained` writes them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf

SMALL: dict[str, Any] = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8)
PROCESSOR: dict[str, Any] = dict(
    do_normalize=True,
    do_rescale=True,
    rescale_factor=1 / 255,
    image_mean=[0.5, 0.4, 0.3],
    image_std=[0.2, 0.3, 0.4],
    size={"height": 32, "width": 32},
)
_TEXT = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    vocab_size=50,
    max_position_embeddings=8,
    bos_token_id=1,
    eos_token_id=2,
)


def _config(kind: str, labels: list[str] | None) -> Any:
    names = {} if labels is None else {"id2label": dict(enumerate(labels)), "num_labels": len(labels)}
    mlp = {"intermediate_size": 64}
    if kind == "vit":
        return hf.ViTConfig(**SMALL, **mlp, **names)
    if kind == "deit":
        return hf.DeiTConfig(**SMALL, **mlp, **names)
    if kind == "dinov2":
        return hf.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=4, **names)
    if kind == "swin":
        stages = dict(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], window_size=2)
        return hf.SwinConfig(image_size=32, patch_size=2, **stages, **names)
    if kind == "hiera":
        stages = dict(embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2])
        return hf.HieraConfig(image_size=[64, 64], **stages, **names)
    if kind == "convnext":
        return hf.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], image_size=32, **names)
    if kind == "siglip":
        return hf.SiglipConfig(vision_config={**SMALL, **mlp}, text_config=_TEXT, **names)
    if kind == "clip":
        return hf.CLIPConfig(vision_config={**SMALL, **mlp}, text_config=_TEXT, **names)
    return hf.ViTMAEConfig(**SMALL, **mlp)


def save(folder: Path, kind: str, labels: list[str] | None = None, **processor: Any) -> Any:
    """Write a model, headless or with the classes `labels`, and return it."""
    hf.utils.logging.disable_progress_bar()
    config = _config(kind, labels)
    auto: Any = hf.AutoModel if labels is None else hf.AutoModelForImageClassification
    if kind == "deit":
        auto = hf.DeiTForImageClassificationWithTeacher
    torch.manual_seed(0)
    model = (auto(config) if kind == "deit" else auto.from_config(config)).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **processor}))
    return model
