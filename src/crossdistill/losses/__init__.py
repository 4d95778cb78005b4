"""The losses, as pure functions on tensors."""

from crossdistill.losses._context import hard_labels as hard_labels
from crossdistill.losses.cc import cc_loss as cc_loss
from crossdistill.losses.crd import crd_loss as crd_loss
from crossdistill.losses.dist import dist_loss as dist_loss
from crossdistill.losses.dkd import dkd_loss as dkd_loss
from crossdistill.losses.fitnet import fitnet_loss as fitnet_loss
from crossdistill.losses.hcd import orthogonality_loss as orthogonality_loss
from crossdistill.losses.hcd import sublogit_cross_entropy as sublogit_cross_entropy
from crossdistill.losses.hcd import sublogit_divergence as sublogit_divergence
from crossdistill.losses.infonce import info_nce_loss as info_nce_loss
from crossdistill.losses.kd import kd_loss as kd_loss
from crossdistill.losses.kd import standardise_logits as standardise_logits
from crossdistill.losses.ofa import ofa_loss as ofa_loss
from crossdistill.losses.rkd import rkd_angle_loss as rkd_angle_loss
from crossdistill.losses.rkd import rkd_distance_loss as rkd_distance_loss
from crossdistill.losses.rsd import rsd_loss as rsd_loss
