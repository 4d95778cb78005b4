"""A stem for small images: early strides taken out of a network built for 224 pixels.

At 32 pixels an ImageNet network ends in a single cell. Plain transformers and patchified
networks take a smaller `patch_size`; convolutional stems are changed here: each of the first
resolution levels loses its stride (a max pool goes, a kernel larger than 3 keeps its centre 3x3).
The change is found by watching one forward, so it needs no table of models.

The changed network is no longer the timm architecture of that name, and weights of a stride-1
convolution would load into the original without a word. So it is registered with timm as
`crossdistill_small_stem`: after `import crossdistill.backbones`, `timm.create_model("local-dir:...")` builds
exactly what was exported; without that import, timm refuses the name.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import load_pretrained, register_model
from torch import Tensor, nn

from crossdistill.backbones.base import probe_images
from crossdistill.errors import UserError

SMALL_STEM = "crossdistill_small_stem"


def strided_modules(model: nn.Module, in_chans: int, img_size: int, last_cells: int) -> list[str]:
    """Name the modules that must lose their stride for the last map to have `last_cells` cells a side.

    They are those of the first resolution levels; parallel branches of one level (a block's
    convolution and its shortcut) come together. Empty where the last map is large enough. Raises
    UserError where the strides are not those of plain convolutions and pools.
    """
    seen: list[tuple[str, int, int]] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            before, after = inputs[0].shape[-1], output.shape[-1]
            # A larger ratio is a pool over the whole map, not a step of the pyramid.
            if 1 < before / after <= 4:
                seen.append((name, before, after))

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)
    ]
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(probe_images(model, in_chans, img_size))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    names: list[str] = []
    last = min((after for _, _, after in seen), default=img_size)
    size = img_size
    while last < last_cells and last < img_size:
        level = [(name, after) for name, before, after in seen if before == size]
        if not level:
            raise UserError(
                "this model's early strides are not plain convolutions or pools, so small_images cannot take them out; "
                "use a larger img_size or an argument of the model's own (patch_size, output_stride, ...)"
            )
        names += [name for name, _ in level]
        last = last * round(size / level[0][1])
        size = level[0][1]
    return names


def remove_strides(model: nn.Module, names: Sequence[str]) -> None:
    """Change the named modules in place: pools go, convolutions get stride 1 and at most a 3x3 kernel."""
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size[0] > 3:
                _keep_centre(module)
        else:
            model.set_submodule(name, nn.Identity())


def _keep_centre(conv: nn.Conv2d) -> None:
    top, left = (conv.kernel_size[0] - 3) // 2, (conv.kernel_size[1] - 3) // 2
    conv.weight = nn.Parameter(conv.weight.detach()[:, :, top : top + 3, left : left + 3].clone())
    conv.kernel_size = (3, 3)
    conv.padding = (1, 1)


def crossdistill_small_stem(
    pretrained: bool = False, base: str = "", strided: Sequence[str] = (), pretrained_cfg: Any = None, **kwargs: Any
) -> nn.Module:
    """Entry point for timm: `base` without the strides of the modules named in `strided`."""
    kwargs.pop("cache_dir", None)
    kwargs.pop("pretrained_cfg_overlay", None)
    exported = pretrained_cfg is not None
    model = timm.create_model(base, pretrained=pretrained and not exported, **kwargs)
    remove_strides(model, strided)
    if exported:
        if not isinstance(pretrained_cfg, dict):
            pretrained_cfg = pretrained_cfg.to_dict()
        model.pretrained_cfg = model.default_cfg = dict(pretrained_cfg)
        if pretrained:
            load_pretrained(
                model,
                pretrained_cfg=pretrained_cfg,
                num_classes=kwargs.get("num_classes", 1000),
                in_chans=kwargs.get("in_chans", 3),
            )
    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": SMALL_STEM}
    return model


register_model(crossdistill_small_stem)
