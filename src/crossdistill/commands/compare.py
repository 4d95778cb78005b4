"""`crossdistill compare`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossdistill.commands._run import RunParser, read_early_flags, read_recipe
from crossdistill.commands._show import consoles
from crossdistill.config.yaml_text import load_yaml
from crossdistill.errors import UserError

if TYPE_CHECKING:
    from crossdistill.training.compare import Variant

ABOUT = "Train one student by several methods over several seeds, with one recipe and one teacher."
_METHODS = "none,kd,rsd"


def run(argv: Sequence[str]) -> int:
    """Compare methods."""
    return run_comparison("compare", ABOUT, argv, None, "runs/compare")


def run_comparison(command: str, about: str, argv: Sequence[str], recipe: str | None, out: str) -> int:
    """Compare methods on a recipe, in the folder `out` unless another is given."""
    parser = RunParser(command, about, unread=("method",))
    parser.add_argument(
        "--methods", type=str, default=_METHODS, help="Methods to compare, with commas; variants as rsd{kappa=0}."
    )
    parser.add_argument("--seeds", type=str, default="0,1,2", help="Seeds of each method, with commas.")
    base = read_recipe(argv, recipe)
    named = split_variants(read_early_flags(argv).methods or _METHODS)
    config, made = parser.read_run(argv, base, methods=[re.sub(r"\{[^}]*\}", "", name) for name in named])
    seeds = _whole_numbers(made.seeds)
    variants = [parse_variant(text) for text in split_variants(made.methods)]
    from crossdistill.report.tables import show
    from crossdistill.training.compare import compare

    result, progress = consoles()
    table, page = compare(config, variants, seeds, Path(config.out or out), progress)
    show(table, result)
    result.print(f"report: {page}", soft_wrap=True, highlight=False, markup=False)
    return 0


def split_variants(text: str) -> list[str]:
    """Split "none,rsd{kappa=0,weight=0.2}" at the commas that are outside braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", text) if part.strip()]


def parse_variant(text: str) -> "Variant":
    """Read a method, "method{option=value,...}", or a sum of these. Raises UserError."""
    from crossdistill.methods import options_key
    from crossdistill.training.compare import Variant

    names, options = [], {}
    for part in re.split(r"\+(?![^{]*\})", text):
        named = re.fullmatch(r"([^{}]+)(?:\{(.*)\})?", part.strip())
        if not named:
            raise UserError(f"method {text!r}: write a name, or name{{option=value,...}}")
        name, changes = named.groups()
        names.append(name)
        if changes:
            options[options_key(name)] = _options(text, changes)
    return Variant(text, "+".join(names), options)


def _options(text: str, changes: str) -> dict[str, Any]:
    options = {}
    for change in re.split(r",(?![^\[]*\])", changes):
        option, equals, value = change.partition("=")
        if change and not equals:
            raise UserError(f"method {text!r}: {change!r} is not option=value")
        if change:
            options[option.strip()] = load_yaml(value.strip())
    return options


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in str(text).split(",") if part.strip()]
    except ValueError:
        raise UserError(f"--seeds is {text!r}; give whole numbers with commas, e.g. 0,1,2") from None
