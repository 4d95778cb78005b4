"""Models and methods, described in the terminal."""

import logging
from dataclasses import MISSING, fields
from fnmatch import fnmatch
from functools import partial
from typing import Any

import timm
import torch
from docstring_parser import parse_from_object
from rich import box
from rich.console import Console
from rich.table import Table

from crossdistill.backbones import Backbone, create_backbone
from crossdistill.distiller import create_distiller
from crossdistill.errors import UserError, unknown
from crossdistill.evaluation.cost import count_macs, count_parameters
from crossdistill.methods import METHODS, find_method


def print_models(
    pattern: str | None, num_classes: int, img_size: int | None, small_images: bool, console: Console, notes: Console
) -> None:
    """Print a table of the models that fit `pattern`, or all names without one. Raises UserError where none fits."""
    if pattern is None:
        for name in timm.list_models():
            console.print(name, highlight=False)
        notes.print("also: torchvision:<name>, package.module:factory. A pattern shows stages, widths and cost.")
        return
    names = [pattern] if ":" in pattern else [name for name in timm.list_models() if fnmatch(name, pattern)]
    if not names:
        raise unknown("model", pattern, timm.list_models())
    logging.getLogger("crossdistill").setLevel(logging.ERROR)
    table = Table(box=box.SIMPLE_HEAD)
    for head, side in (("model", "left"), ("px", "right"), ("M params", "right"), ("MMACs", "right")):
        table.add_column(head, justify=side, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("embedding", justify="right")
    table.add_column("channels @ strides of the four stages")
    failures = []
    with console.status("reading models") as status:
        for place, name in enumerate(names):
            status.update(f"reading {name} ({place + 1} of {len(names)})")
            try:
                backbone = outline(name, num_classes, img_size, small_images)
                table.add_row(*_row(backbone))
            except UserError as error:
                failures.append(f"{name}: {error}")
    console.print(table)
    for failure in failures:
        notes.print(failure, highlight=False)
    if failures and len(failures) == len(names):
        raise UserError(f"none of the {len(names)} models can be read")


def outline(
    name: str, num_classes: int, img_size: int | None, small_images: bool = False, **model_args: Any
) -> Backbone:
    """Build a model without memory for its weights, where it can be built so."""
    build = partial(create_backbone, name, num_classes, img_size, small_images=small_images, **model_args)
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError, UserError):
        # Some constructors compute with values, which meta tensors have not.
        return build()


def _row(backbone: Backbone) -> list[str]:
    spec = backbone.spec
    if spec.stage_channels is None or spec.stage_strides is None:
        stages = f"cannot be read: {backbone.stage_problem}"
    else:
        stages = " @ ".join(" ".join(map(str, numbers)) for numbers in (spec.stage_channels, spec.stage_strides))
    size = f"{count_parameters(backbone) / 1e6:.2f}"
    return [
        spec.name,
        str(backbone.img_size),
        size,
        f"{count_macs(backbone) / 1e6:.0f}",
        str(spec.embedding_dim),
        stages,
    ]


def print_methods(console: Console) -> None:
    """Print each method's idea and paper."""
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("method", "idea", "paper"):
        table.add_column(head)
    for name, method in METHODS.items():
        table.add_row(name, method.idea, method.paper)
    console.print(table)


def print_method(name: str, student: str, teacher: str, console: Console) -> None:
    """Print a method's idea, options with defaults, paper, and the parameters it would add for a pair."""
    method = find_method(name)
    console.print(f"[bold]{name}[/]: {method.idea}\npaper: {method.paper}", highlight=False)
    about = {p.arg_name: p.description or "" for p in parse_from_object(method.Options).params}
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("option", "default", "meaning"):
        table.add_column(head, no_wrap=head != "meaning")
    for field in fields(method.Options):
        default = "" if field.default is MISSING else str(field.default)
        table.add_row(field.name, default, " ".join(about.get(field.name, "").split()))
    if table.row_count:
        console.print(table)
    pair = [create_backbone(model, 100) for model in (student, teacher)] if method.uses_teacher else []
    extra = count_parameters(create_distiller(name, student=pair[0], teacher=pair[1]).method) if pair else 0
    console.print(f"{teacher} -> {student}: {extra:,} training-only parameters with these defaults", highlight=False)
