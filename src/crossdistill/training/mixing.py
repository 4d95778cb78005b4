"""mixup and CutMix of two renderings of one batch, with the same random numbers."""

import numpy as np
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor


def mix_both(mixup: Mixup, images: Tensor, others: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mix images (B, C, H, W), in place, and the same views at another size in the same way.

    Returns both and the mixed targets. timm pairs image i with image B - 1 - i.
    """
    before = np.random.get_state()
    # What is mixed of an image is read from a batch of ones and zeros.
    marks = images.new_zeros(len(images), 1, *images.shape[2:])
    half = len(images) // 2
    marks[:half] = 1
    images, mixed = mixup(images, targets)
    after = np.random.get_state()
    np.random.set_state(before)
    mixup(marks, targets)
    np.random.set_state(after)
    marks[half:] = 1 - marks[half:]
    own = F.interpolate(marks, others.shape[2:], mode="nearest")
    return images, others * own + others.flip(0) * (1 - own), mixed
