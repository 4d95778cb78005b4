"""Code that a file may name: importing it leaves a mark, and so does calling it."""

import os
from pathlib import Path

import timm

from crossdistill.methods import Method

Path(os.environ["MARK"]).touch()


def build(num_classes, in_chans):
    return timm.create_model("test_vit", num_classes=num_classes, in_chans=in_chans, img_size=32, patch_size=8)


class Own(Method):
    idea = "Plain training."

    def forward(self, student, teacher, targets):
        return {}
