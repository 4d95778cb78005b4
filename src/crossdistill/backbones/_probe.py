"""Record one forward pass on fixed noise: which modules it calls, and what they return."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from crossdistill.errors import UserError, kind_and_line
from crossdistill.image_size import ImageSize, sides_of

_V = TypeVar("_V")


@dataclass(frozen=True)
class Call(Generic[_V]):
    """One call of a named module, and what was recorded of it."""

    name: str
    module: nn.Module
    value: _V


def probe_images(model: nn.Module, in_chans: int, img_size: ImageSize) -> Tensor:
    """Make two fixed noise images on the model's device; draws nothing from the global generators."""
    like = next(model.parameters(), torch.empty(0))
    shape = (2, in_chans, *sides_of(img_size))
    if like.is_meta:
        return torch.empty(shape, device="meta", dtype=like.dtype)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(device=like.device, dtype=like.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode without gradients, and restore the mode of every module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def record(
    model: nn.Module, run: Callable[[], Any], keep: Callable[[tuple[Any, ...], Any], _V]
) -> tuple[list[Call[_V]], Any]:
    """Call `run`, which runs the model in eval mode, and list the calls of its named modules, in order of completion.

    `keep(inputs, output)` chooses what is recorded of a call. Also returns what `run` returned.
    """
    calls: list[Call[_V]] = []

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            calls.append(Call(name, module, keep(inputs, output)))

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules() if name]
    try:
        with evaluating(model):
            return calls, run()
    finally:
        for handle in handles:
            handle.remove()


def record_probe(
    model: nn.Module, name: str, in_chans: int, img_size: ImageSize, keep: Callable[[tuple[Any, ...], Any], _V]
) -> tuple[list[Call[_V]], Any]:
    """Run a model on the noise images, and record its calls as `record` does. Raises UserError where it cannot run."""
    images = probe_images(model, in_chans, img_size)
    try:
        return record(model, lambda: model(images), keep)
    except Exception as error:  # the code of a model can raise anything
        raise cannot_run(name, in_chans, img_size, error) from error


def cannot_run(name: str, in_chans: int, img_size: ImageSize, error: Exception) -> UserError:
    """Build the error for a model that fails on images of this shape."""
    hint = "; if it needs three channels, --loader.in-chans 3 converts grey images" if in_chans == 1 else ""
    height, width = sides_of(img_size)
    if height != width:
        hint += f"; if it takes square images alone, give --img-size {max(height, width)}"
    return UserError(
        f"model {name!r} cannot run on images of {in_chans} x {height} x {width} ({kind_and_line(error)}){hint}"
    )
