"""`crossdistill models`."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from crossdistill.commands._parser import Parser
from crossdistill.commands._show import consoles
from crossdistill.errors import UserError, unknown
from crossdistill.image_size import written

if TYPE_CHECKING:
    from crossdistill.backbones import Backbone

ABOUT = "Print what is read from models: stages, widths, parameters, operations. Without a pattern, timm's names."
_HEADER = ["model", "px", "M params", "MMACs", "embedding", "channels @ strides of the four stages"]


def run(argv: Sequence[str]) -> int:
    """List models."""
    parser = Parser("models", ABOUT)
    parser.add_argument("pattern", nargs="?", type=str, default=None, help="A name or a pattern such as 'resnet*'.")
    parser.add_argument("--num_classes", type=int, default=1000, help="Classes of the classifier; 0 for none.")
    parser.add_argument(
        "--img_size",
        type=int | str | None,
        default=None,
        help="Pixels along a side, or HEIGHTxWIDTH; the model's own by default.",
    )
    parser.add_argument("--small_images", action="store_true", help="With the stem for small images.")
    made = parser.read(argv)
    import timm

    from crossdistill.report.tables import TextTable, show

    result, notes = consoles()
    if made.pattern is None:
        print("\n".join(timm.list_models()))
        notes.print("also: torchvision:<name>, package.module:factory. A pattern shows stages, widths and cost.")
        return 0
    # A name with a tag (vit_small_patch16_224.augreg_in21k) is one model, as timm lists the names without tags.
    tagged = "*" not in made.pattern and timm.is_model(made.pattern)
    names = (
        [made.pattern] if ":" in made.pattern or tagged else [n for n in timm.list_models() if fnmatch(n, made.pattern)]
    )
    if not names:
        raise unknown("model", made.pattern, timm.list_models())
    rows, failures = _read(names, made.num_classes, made.img_size, made.small_images)
    if rows:
        show(TextTable("", _HEADER, rows, text_columns=(0, 5)), result)
    if len(names) == 1 and failures:
        raise UserError(failures[0])
    for failure in failures:
        notes.print(failure, highlight=False, markup=False, soft_wrap=True)
    if not rows:
        raise UserError(f"none of the {len(names)} models can be read")
    return 0


def _read(
    names: Sequence[str], num_classes: int, img_size: int | str | None, small_images: bool
) -> tuple[list[list[str]], list[str]]:
    """Read models, and return the rows of the table and what went wrong with the others."""
    from crossdistill.backbones.build import outline

    logging.getLogger("crossdistill").setLevel(logging.ERROR)
    rows, failures = [], []
    with consoles()[1].status("reading models") as status:
        for place, name in enumerate(names):
            status.update(f"reading {name} ({place + 1} of {len(names)})")
            try:
                rows.append(_row(outline(name, num_classes, img_size, small_images=small_images)))
            except UserError as error:
                failures.append(str(error) if name in str(error) else f"{name}: {error}")
    return rows, failures


def _row(backbone: "Backbone") -> list[str]:
    from crossdistill.evaluation.cost import count_macs, count_parameters

    spec = backbone.spec
    if spec.stage_channels is None or spec.stage_strides is None:
        stages = f"cannot be read: {backbone.stage_problem}"
    else:
        stages = " @ ".join(" ".join(map(str, numbers)) for numbers in (spec.stage_channels, spec.stage_strides))
    return [
        spec.name,
        str(written(backbone.img_size)),
        f"{count_parameters(backbone) / 1e6:.2f}",
        f"{count_macs(backbone) / 1e6:.0f}",
        str(spec.embedding_dim),
        stages,
    ]
