"""One forward pass on fixed noise, recorded: which modules it calls, and what they return."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

_V = TypeVar("_V")


@dataclass(frozen=True)
class Call(Generic[_V]):
    """One call of a named module, and what was recorded of it."""

    name: str
    module: nn.Module
    value: _V


def probe_images(model: nn.Module, in_chans: int, img_size: int) -> Tensor:
    """Make two fixed noise images on the model's device; draws nothing from the global generators."""
    like = next(model.parameters(), torch.empty(0))
    shape = (2, in_chans, img_size, img_size)
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
