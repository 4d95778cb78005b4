"""The inputs of the golden values, by the formula of their README."""

import torch
from torch import Tensor


def grid(rows: int, cols: int, a: float, b: float, c: float, scale: float) -> Tensor:
    i = torch.arange(rows, dtype=torch.float64).view(-1, 1)
    j = torch.arange(cols, dtype=torch.float64).view(1, -1)
    return scale * torch.sin(a * i + b * j + c * ((i * j) % 7))


def student_logits(case: dict) -> Tensor:
    return grid(case["batch"], case["classes"], 0.7 + 0.1 * case["seed"], 1.3, 0.11, 3)


def teacher_logits(case: dict) -> Tensor:
    return grid(case["batch"], case["classes"], 0.9, 1.1 + 0.1 * case["seed"], 0.23, 5)


def student_embedding(case: dict) -> Tensor:
    return grid(case["batch"], case["teacher_dim"], 0.51, 0.77 + 0.1 * case["seed"], 0.31, 1.5)


def teacher_embedding(case: dict) -> Tensor:
    return grid(case["batch"], case["teacher_dim"], 0.43 + 0.1 * case["seed"], 0.91, 0.17, 2)


def labels(case: dict) -> Tensor:
    return (5 * torch.arange(case["batch"]) + case["seed"]) % case["classes"]


def sublogits(case: dict) -> Tensor:
    parts = [grid(case["batch"], case["classes"], 0.2 * (q + 1), 0.6 + 0.1 * q, 0.07, 2) for q in range(4)]
    return torch.stack(parts, dim=1)
