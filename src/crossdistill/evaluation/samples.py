"""A few test images with the models' predictions, for the report."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crossdistill.backbones import Backbone
from crossdistill.data import ImageData
from crossdistill.data.classes import has_classes_of
from crossdistill.files import write_whole
from crossdistill.teacher import Teacher

_SAMPLE = 96
_SHOWN = 12
_SIDE = 96


@torch.inference_mode()
def save_samples(
    path: Path,
    student: Backbone,
    teacher: Teacher | None,
    data: ImageData,
    transform: Callable[..., Any],
    seen: Callable[..., Any] | None = None,
) -> None:
    """Write twelve test images as JSON, the student's mistakes first (at most half), with both models' predictions.

    A teacher of other classes, or without a classifier, is left out. `seen` is the teacher's transform where it is
    another one.
    """
    device = next(student.parameters()).device
    chosen = torch.linspace(0, len(data.test) - 1, min(_SAMPLE, len(data.test))).round().long().tolist()
    originals = [data.test.read(i) for i in chosen]
    images = torch.stack([transform(original) for original in originals]).to(device)
    answers = {"student": student(images).require_logits().float().softmax(1).cpu()}
    if teacher is not None and has_classes_of(data, [teacher.backbone, *(m.backbone for m in teacher.members)]):
        if seen is not None:
            images = torch.stack([seen(original) for original in originals]).to(device)
        answers["teacher"] = teacher(images).require_logits().float().softmax(1).cpu()
    labels = [int(data.test.labels[i]) for i in chosen]
    right = [int(answers["student"][k].argmax()) == label for k, label in enumerate(labels)]
    wrong_first = [k for k, ok in enumerate(right) if not ok][: _SHOWN // 2]
    shown = (wrong_first + [k for k, ok in enumerate(right) if ok])[:_SHOWN]
    samples = []
    for k in shown:
        thumb = originals[k].convert("RGB")
        thumb = thumb.resize((_SIDE, max(1, round(_SIDE * thumb.height / thumb.width))), resample=0)
        buffer = io.BytesIO()
        thumb.save(buffer, "PNG")
        predicted = {
            who: {"class": data.class_names[int(p[k].argmax())], "probability": float(p[k].max())}
            for who, p in answers.items()
        }
        image = base64.b64encode(buffer.getvalue()).decode()
        samples.append({"image": image, "truth": data.class_names[labels[k]], "right": right[k], **predicted})
    write_whole(path, json.dumps(samples))
