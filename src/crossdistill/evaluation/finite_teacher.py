"""A look at whether a teacher's output is finite."""

import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.teacher import Teacher


@torch.inference_mode()
def check_finite(teacher: Teacher, images: Tensor) -> None:
    """Raise UserError where a teacher's embedding or logits for a batch hold NaN or inf.

    `images` (B, C, H, W) are normalised for the student.
    """
    output = teacher(images.to(teacher.scale.device))
    for name, values in (("embedding", output.embedding), ("logits", output.logits)):
        if values is None:
            continue
        wrong = int((~torch.isfinite(values)).flatten(1).any(dim=1).sum())
        if wrong:
            kind = "NaN" if bool(torch.isnan(values).any()) else "inf"
            raise UserError(
                f"the teacher {teacher.spec.name!r} returns {kind}: its {name} for {wrong} of {len(images)} held-out "
                "images are not finite, so nothing can be learned from it; give another --teacher-checkpoint"
            )
