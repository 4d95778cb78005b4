"""Any image network as a `Backbone`: logits, embedding and four stage maps in one forward pass."""

from crossdistill.backbones._probe import probe_images as probe_images
from crossdistill.backbones.base import Backbone as Backbone
from crossdistill.backbones.build import create_backbone as create_backbone
from crossdistill.backbones.build import load_backbone as load_backbone
