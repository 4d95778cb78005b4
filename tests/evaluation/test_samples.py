import base64
import io
import json

import torch
from PIL import Image

import crossdistill as cd
from crossdistill.config import AugmentConfig, LoaderConfig
from crossdistill.data import load_data
from crossdistill.data.transforms import eval_transform
from crossdistill.evaluation.samples import save_samples
from crossdistill.teacher import Teacher


def test_twelve_images_with_both_predictions(tmp_path):
    data = load_data("digits", LoaderConfig())
    student = cd.create_backbone("test_vit", 10, 32, in_chans=1, patch_size=8).eval()
    backbone = cd.create_backbone("test_resnet", 10, 32, in_chans=1)
    transform = eval_transform(AugmentConfig(), student.spec, 32)
    save_samples(tmp_path / "samples.json", student, Teacher(backbone, student.spec), data, transform)
    samples = json.loads((tmp_path / "samples.json").read_text())
    assert len(samples) == 12
    for sample in samples:
        assert {"image", "truth", "right", "student", "teacher"} == set(sample)
        assert Image.open(io.BytesIO(base64.b64decode(sample["image"]))).size == (96, 96)
        assert 0 < sample["student"]["probability"] <= 1
        assert sample["right"] == (sample["student"]["class"] == sample["truth"])
    # Mistakes come first, and are at most half.
    assert [sample["right"] for sample in samples] == sorted(sample["right"] for sample in samples)


def test_a_teacher_of_other_classes_is_left_out(tmp_path):
    data = load_data("digits", LoaderConfig())
    student = cd.create_backbone("test_vit", 10, 32, in_chans=1, patch_size=8).eval()
    transform = eval_transform(AugmentConfig(), student.spec, 32)
    for classes in (0, 7):
        teacher = Teacher(cd.create_backbone("test_resnet", classes, 32, in_chans=1), student.spec)
        torch.manual_seed(0)
        save_samples(tmp_path / "samples.json", student, teacher, data, transform)
        assert all("teacher" not in sample for sample in json.loads((tmp_path / "samples.json").read_text()))
