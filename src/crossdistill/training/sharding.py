"""Weights divided over the devices (FSDP2), each part gathered where it is needed."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from crossdistill.distiller import Distiller
from crossdistill.errors import UserError

_LEAST_SHARE = 0.005
"""Share of a model's parameters from which a layer is gathered on its own."""


def shard_trained(distiller: Distiller, mesh: DeviceMesh) -> None:
    """Divide what trains: the student layer by layer, and the method's own parts.

    Raises UserError for a method that shares the student's weights (FBT with the student as the back):
    gathering them in one place would not gather them in the other.
    """
    if distiller.method.runs_student:
        raise UserError(
            "this method runs a part of the student itself, which weights that are divided do not allow; use "
            "--engine.strategy ddp"
        )
    _shard_layers(distiller.student, mesh)
    if any(p.requires_grad for p in distiller.method.parameters()):
        fully_shard(distiller.method, mesh=mesh)


def shard_teachers(distiller: Distiller, device: torch.device) -> None:
    """Divide the teachers over all processes. Raises UserError for a method that runs a part of one itself."""
    if distiller.teacher is None:
        return
    if distiller.method.runs_teacher:
        raise UserError("this method runs a part of the teacher itself; leave engine.shard_teacher out")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for member in distiller.teacher.members:
        member.to(device)
        _shard_layers(member.backbone, mesh)


def _shard_layers(model: nn.Module, mesh: DeviceMesh) -> None:
    whole = sum(p.numel() for p in model.parameters())
    for layer in _layers(model):
        if sum(p.numel() for p in layer.parameters()) >= _LEAST_SHARE * whole:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _layers(model: nn.Module) -> list[nn.Module]:
    """Find the outermost members of sequences: blocks of a transformer, stages of a CNN."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += [layer for layer in child if isinstance(layer, nn.Module)]
        else:
            found += _layers(child)
    return found
