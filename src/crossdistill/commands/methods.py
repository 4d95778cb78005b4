"""`crossdistill methods`."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from crossdistill.commands._parser import Parser
from crossdistill.commands._show import consoles
from crossdistill.errors import UserError

if TYPE_CHECKING:
    from crossdistill.types import Reads

ABOUT = "List the methods; with a name, its idea, options, paper, and the parameters that it adds for a pair."

_IMAGES = 50_000
"""Training images of the example, for methods that store something of each."""


def run(argv: Sequence[str]) -> int:
    """List methods."""
    parser = Parser("methods", ABOUT)
    parser.add_argument("name", nargs="?", type=str, default=None, help="A method; all are listed without it.")
    parser.add_argument("--student", type=str, default="resnet18", help="Student of the example pair.")
    parser.add_argument(
        "--teacher", type=str, default="swin_tiny_patch4_window7_224", help="Teacher of the example pair."
    )
    made = parser.read(argv)
    if made.name is None:
        _list_methods()
    else:
        _describe(made.name, made.student, made.teacher)
    return 0


def _list_methods() -> None:
    from crossdistill.methods import METHODS, NONE, choose_method
    from crossdistill.methods.installed import installed_methods, package_of
    from crossdistill.report.tables import show, text_table

    rows = [[NONE, "Train on the labels alone, as the baseline for every method.", "nothing", "-"]]
    rows += [[name, m.idea, _reads(m.needs.teacher), m.paper] for name, m in METHODS.items()]
    problems = []
    for name, point in installed_methods().items():
        if name in METHODS:
            problems.append(
                f"{name}: the package {package_of(point)!r} names a method as a built-in one; it is not used"
            )
            continue
        try:
            method = choose_method(name).parts[0].method
        except UserError as error:
            problems.append(str(error))
        else:
            rows.append([f"{name} ({package_of(point)})", method.idea, _reads(method.needs.teacher), method.paper])
    show(text_table(["method", "idea", "reads of the teacher", "paper"], rows), consoles()[0])
    for problem in problems:
        consoles()[1].print(f"note: {problem}", highlight=False, markup=False, soft_wrap=True)


def _reads(reads: "Reads") -> str:
    parts = [name for name in ("logits", "embedding") if getattr(reads, name)]
    parts += [f"stage {number}" for number in reads.stages]
    return ", ".join(parts) or "nothing"


def _describe(name: str, student: str, teacher: str) -> None:
    from docstring_parser import parse_from_object
    from torch import nn

    from crossdistill.backbones import create_backbone
    from crossdistill.distiller import create_distiller
    from crossdistill.evaluation.cost import count_parameters
    from crossdistill.methods import NONE, choose_method
    from crossdistill.report.tables import show, text_table

    result, _ = consoles()
    choice = choose_method(name)
    if not choice.parts:
        result.print(f"{NONE}: plain training on the labels; it has no options and adds no parameters")
        return
    distiller = create_distiller(
        choice.for_images(_IMAGES), student=create_backbone(student, 100), teacher=create_backbone(teacher, 100)
    )
    for part in choice.parts:
        result.print(f"{part.name}: {part.method.idea}\npaper: {part.method.paper}", highlight=False, markup=False)
        about = {p.arg_name: p.description or "" for p in parse_from_object(part.method.Options).params}
        rows = [
            [field.name, str(getattr(part.options, field.name)), " ".join(about.get(field.name, "").split())]
            for field in fields(part.options)
        ]
        if rows:
            show(text_table(["option", "default", "meaning"], rows), result)
    extra = count_parameters(distiller.method or nn.Identity())
    result.print(f"{teacher} -> {student}: {extra:,} training-only parameters with these defaults", highlight=False)
