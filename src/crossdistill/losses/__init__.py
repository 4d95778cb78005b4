"""The losses, as pure functions on tensors."""

from crossdistill.losses.kd import kd_loss as kd_loss
from crossdistill.losses.rsd import rsd_loss as rsd_loss
