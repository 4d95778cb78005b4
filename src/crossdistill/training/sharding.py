"""Weights sharded over the devices (FSDP2), each part gathered where it is used."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from crossdistill.distiller import Distiller
from crossdistill.errors import UserError

_LEAST_FRACTION = 0.005
"""Fraction of a model's parameters from which a layer is gathered by itself."""


def shard_trained(distiller: Distiller, mesh: DeviceMesh) -> None:
    """Shard what is trained: the student layer by layer, and the method's own parts.

    Raises UserError for a method that runs a part of the student itself (FBT with the student as the back): gathering
    its weights in one place would not gather them in the other.
    """
    if any(tail.backbone is distiller.student for tail in distiller.borrowed):
        raise UserError(
            "this method runs a part of the student itself, which is not possible with sharded weights; use "
            "--engine.strategy ddp"
        )
    _shard_layers(distiller.student, mesh)
    if distiller.method is not None and any(p.requires_grad for p in distiller.method.parameters()):
        fully_shard(distiller.method, mesh=mesh)


def shard_teachers(distiller: Distiller, device: torch.device) -> None:
    """Shard the teachers over all processes. Raises UserError for a method that runs a part of one itself."""
    if distiller.teacher is None:
        return
    if any(tail.backbone is distiller.teacher.backbone for tail in distiller.borrowed):
        raise UserError("this method runs a part of the teacher itself; leave engine.shard_teacher out")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for member in distiller.teacher.members:
        member.to(device)
        _shard_layers(member.backbone, mesh)


def _shard_layers(model: nn.Module, mesh: DeviceMesh) -> None:
    whole = sum(p.numel() for p in model.parameters())
    for layer in _layers(model):
        if sum(p.numel() for p in layer.parameters()) >= _LEAST_FRACTION * whole:
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
