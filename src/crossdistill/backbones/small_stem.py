"""A stem for small images: the early strides of a network built for 224 pixels are removed.

At 32 pixels an ImageNet network ends in a single cell. Plain transformers and networks with a patch embedding accept a
smaller `patch_size`; convolutional stems are changed here: each of the first resolution levels loses its stride (a max
pool is removed, a kernel larger than 3 keeps its centre 3x3). The modules are found by recording one forward pass, so
no table of models is needed.

The changed network is no longer the timm architecture of that name, and weights of a stride-1 convolution would load
into the original without an error. So it is registered with timm as `crossdistill_small_stem`: after `import
crossdistill.backbones`, `timm.create_model("local-dir:...")` builds exactly what was exported; without that import,
timm refuses the name.
"""

from collections.abc import Sequence
from typing import Any

import timm
from timm.models import load_pretrained, register_model
from torch import Tensor, nn

from crossdistill.backbones._probe import record_probe
from crossdistill.errors import UserError
from crossdistill.image_size import ImageSize, sides_of

SMALL_STEM = "crossdistill_small_stem"


def strided_modules(model: nn.Module, name: str, in_chans: int, img_size: ImageSize, last_cells: int) -> list[str]:
    """Name the modules whose stride must be removed for the last map to have `last_cells` cells along its shorter side.

    They are those of the first resolution levels; parallel branches of one level (the convolution of a block and its
    shortcut) are listed together. Empty where the last map is large enough. Raises UserError where the model cannot run
    on such images, and where the strides are not those of plain convolutions and pools.
    """
    calls, _ = record_probe(model, name, in_chans, img_size, _sides)
    seen = [
        (call.name, *call.value)
        for call in calls
        # A larger ratio is a pool over the whole map, not a step between two resolutions.
        if isinstance(call.module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and 1 < call.value[0] / call.value[1] <= 4
    ]
    names: list[str] = []
    side = min(sides_of(img_size))
    last = min((after for _, _, after in seen), default=side)
    size = side
    while last < last_cells and last < side:
        level = [(name, after) for name, before, after in seen if before == size]
        if not level:
            raise UserError(
                "this model's early strides are not plain convolutions or pools, so small_images cannot remove them; "
                "use a larger img_size or an argument of the model's own (patch_size, output_stride, ...)"
            )
        names += [name for name, _ in level]
        last = last * round(size / level[0][1])
        size = level[0][1]
    return names


def _sides(inputs: tuple[Any, ...], output: Any) -> tuple[int, int]:
    """Return the shorter side of a module's first input and of its output; (1, 1) where they are not maps."""
    before = inputs[0] if inputs else None
    if isinstance(before, Tensor) and isinstance(output, Tensor) and before.ndim == output.ndim == 4:
        return min(before.shape[2:]), min(output.shape[2:])
    return 1, 1


def remove_strides(model: nn.Module, names: Sequence[str]) -> None:
    """Change the named modules in place: pools are removed, convolutions get stride 1 and at most a 3x3 kernel."""
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
    """Build `base` without the strides of the modules named in `strided`; an entry point of timm."""
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
