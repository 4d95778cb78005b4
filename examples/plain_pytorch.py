"""Distil in your own loop, without Lightning and without the command line."""

import torch
from sklearn.datasets import load_digits

import crossdistill as cd

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
images = torch.nn.functional.interpolate(images, 32)
targets = torch.tensor(digits.target)

teacher = cd.create_backbone("test_resnet", num_classes=10, img_size=32, in_chans=1)  # yours: checkpoint="teacher.pth"
student = cd.create_backbone("test_vit", num_classes=10, img_size=32, in_chans=1, patch_size=8)
distiller = cd.create_distiller("rsd", student=student, teacher=teacher, options={"kappa": 0.01}).train()
optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-3)  # the teacher is not among them
for indices in torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:1024].split(64):
    step = distiller(images[indices], targets[indices])
    optimizer.zero_grad()
    step.loss.backward()
    optimizer.step()
    print({name: round(term.item(), 3) for name, term in step.terms.items()})
torch.save(distiller.student.model.state_dict(), "student.pth")  # a plain timm model
