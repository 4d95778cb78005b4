"""Settings of devices, precision and logging."""

from typing import Annotated, Literal

from pydantic import Field

from crossdistill.config.validation import OptionalThreads, PositiveInt, Text, settings
from crossdistill.errors import UserError


@settings
class EngineConfig:
    """Devices, precision and logging."""

    accelerator: str = "auto"
    """auto, cpu, gpu, ..."""
    devices: Annotated[int, Field(strict=True, ge=-1)] = 1
    """Devices of each node; -1 uses all."""
    nodes: PositiveInt = 1
    """Number of machines."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several devices train: "ddp" (each holds all weights) or "fsdp" (the trained weights are sharded)."""
    shard_teacher: bool = False
    """Shard the teacher's weights over the devices as well; otherwise each device holds the whole teacher."""
    precision: Annotated[Literal["32", "bf16", "16"], Text] = "32"
    """32, or mixed precision with bf16 or 16."""
    compile: bool = False
    """Use torch.compile for the training step: student, teacher and method as one graph."""
    channels_last: bool | Literal["auto"] = "auto"
    """Memory format of images and weights; "auto" uses channels-last unless weights are sharded."""
    accumulate: PositiveInt = 1
    """Batches per optimiser step."""
    sync_batchnorm: bool = False
    """Compute the student's batch norms over all devices (GPUs only). The methods' own statistics always are."""
    threads: OptionalThreads = None
    """Threads of torch on the CPU; null leaves torch's choice."""
    log_every: PositiveInt = 20
    """Steps between two log rows."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss that is not finite: "stop" ends the run within log_every steps and keeps the last checkpoint; "skip"
    leaves that optimiser step out, and stops after 10 batches in a row. It waits for the device in every step."""

    def __post_init__(self) -> None:
        if self.devices == 0:
            raise UserError("engine.devices is 0; it must be at least 1, or -1 for all")
        if self.channels_last is True and self.sharded:
            raise UserError("channels-last weights cannot be sharded: set engine.channels_last to false")

    @property
    def sharded(self) -> bool:
        """Whether any weights are sharded over the devices."""
        return self.strategy == "fsdp" or self.shard_teacher
