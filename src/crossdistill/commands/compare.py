"""`crossdistill compare`."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from crossdistill.commands._run import RunParser, read_early_flags, read_recipe
from crossdistill.commands._show import consoles
from crossdistill.config.yaml_text import load_yaml
from crossdistill.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from crossdistill.config import RunConfig
    from crossdistill.training.grid import Axes, Cell, Student, Sweep, Variant
    from crossdistill.training.outcome import Outcome

ABOUT = "Train students by several methods over several seeds, with one recipe, and compare them."
_METHODS = "none,kd,rsd"


def run(argv: Sequence[str]) -> int:
    """Compare methods."""
    return run_comparison("compare", ABOUT, argv, None, "runs/compare")


def run_comparison(
    command: str, about: str, argv: Sequence[str], recipe: str | None, out: str, inspect: bool = False
) -> int:
    """Compare methods on a recipe; `out` and `inspect` are the defaults of these options."""
    parser = _parser(command, about, inspect)
    base = read_recipe(argv, recipe)
    named = split_variants(read_early_flags(argv).methods or _METHODS)
    config, made = parser.read_run(argv, base, methods=[_without_options(name) for name in named])
    axes = _axes(made)
    _check_flags(parser.given(argv), config, axes)
    _check_division(made)
    from crossdistill.training.compare import check_comparison, compare, outcome_so_far
    from crossdistill.training.outcome import inspect_groups
    from crossdistill.training.workers import SINCE, run_workers

    folder = Path(config.out or out)
    since = float(os.environ.get(SINCE, time.time()))
    result, progress = consoles()
    first = SINCE not in os.environ  # not one of the processes or jobs of another command
    words = [command, *argv]
    if first and made.cluster is not None:
        cells = check_comparison(config, axes, folder)
        outcome = _on_cluster(cells, folder, made, words, since, progress)
    else:
        if first and made.jobs > 1:
            check_comparison(config, axes, folder)
            run_workers(words, made.jobs, since, progress, threads=config.engine.threads is None)
        outcome = compare(config, axes, folder, progress, shard=_shard(made.shard), since=since)
    if first and made.inspect:
        cells = check_comparison(config, axes, folder)
        inspect_groups(cells, folder, progress, trust_code=config.trust_code)
        outcome = outcome_so_far(cells, folder, since)
    _show(outcome, result)
    return 1 if outcome.failures or (outcome.missing and made.cluster is not None) else 0


def _check_division(made: Namespace) -> None:
    """Raise UserError for flags that divide the runs in ways that exclude each other."""
    if made.cluster_parameters and made.cluster is None:
        raise UserError("--cluster-parameters describe the jobs of --cluster, which is not given")
    if made.cluster is not None and _shard(made.shard) != (1, 1):
        raise UserError("--cluster divides the runs among its jobs; leave --shard out")


def _on_cluster(
    cells: "Sequence[Cell]", folder: Path, made: Namespace, words: Sequence[str], since: float, console: "Console"
) -> "Outcome":
    """Train the runs in jobs of a cluster, and wait for them."""
    from crossdistill.training.cluster import run_jobs
    from crossdistill.training.compare import finished_runs, outcome_so_far

    if finished_runs(cells, folder) < len({cell.folder for cell in cells}):
        place = dict(cluster=made.cluster, parameters=made.cluster_parameters, since=since)
        run_jobs(words, made.jobs, folder, console, finished=lambda: finished_runs(cells, folder), **place)
    return outcome_so_far(cells, folder, since)


def _show(outcome: "Outcome", result: "Console") -> None:
    from crossdistill.report.tables import show

    if outcome.table is not None:
        show(outcome.table, result)
        result.print(f"report: {outcome.page}", soft_wrap=True, highlight=False, markup=False)
    for note in outcome.notes:
        result.print(f"crossdistill: note: {note}", soft_wrap=True, highlight=False, markup=False)
    for reason in dict.fromkeys(outcome.failures.values()):
        names = ", ".join(name for name, why in outcome.failures.items() if why == reason)
        result.print(f"failed: {names}: {reason}", soft_wrap=True, highlight=False, markup=False)
    if outcome.missing:
        result.print(f"{outcome.missing} runs are not finished", highlight=False, markup=False)


def _parser(command: str, about: str, inspect: bool) -> RunParser:
    parser = RunParser(command, about, unread=("method",))
    parser.add_argument(
        "--methods", type=str, default=_METHODS, help="Methods to compare, with commas; variants as rsd{kappa=0}."
    )
    parser.add_argument("--seeds", type=str, default="0,1,2", help="Seeds of each method, with commas.")
    parser.add_argument(
        "--students", type=str, default="", help="Several students, with commas; arguments as test_vit{patch_size=8}."
    )
    parser.add_argument(
        "--teachers",
        type=str,
        default="",
        help="Several teachers, with commas: folders of runs, or names of models, which are trained first.",
    )
    parser.add_argument(
        "--sweep", type=str, default="", help="One setting with several values: options.kd.temperature=1,2,4."
    )
    parser.add_argument("--jobs", type=PositiveInt, default=1, help="Processes that train runs at the same time.")
    parser.add_argument(
        "--cluster",
        type=Literal["slurm", "local"] | None,
        default=None,
        help="Submit the processes as jobs by submitit; local runs them on this machine, to try it.",
    )
    parser.add_argument(
        "--cluster_parameters",
        type=dict[str, Any],
        default={},
        help="Of each job, as submitit names them: {slurm_partition: gpu, gpus_per_node: 1, timeout_min: 240}.",
    )
    parser.add_argument(
        "--shard", type=str, default="1/1", help="i/n trains every n-th run, beginning with the i-th (job arrays)."
    )
    parser.add_argument(
        "--inspect",
        type=bool,
        default=inspect,
        help="Look into one run of each method afterwards, as `crossdistill inspect` does, and show it in the page.",
    )
    return parser


_OF_ONE = {
    "student": ("student_args", "student_stages", "student_checkpoint", "student_checkpoint_key"),
    "teacher": ("teacher_args", "teacher_stages", "teacher_img_size"),
}
"""Settings of the model that is named by --student or --teacher alone."""


def _check_flags(given: Sequence[str], config: "RunConfig", axes: "Axes") -> None:
    """Raise UserError for settings of one model where --students or --teachers lists others."""
    listed: dict[str, tuple[object, list[str]]] = {
        "student": (config.student, [one.name for one in axes.students]),
        "teacher": (config.teacher, list(axes.teachers)),
    }
    for kind, (own, names) in listed.items():
        settings = [f"model.{name}" for name in _OF_ONE[kind]]
        flag = next((one for one in given if any(one == name or one.startswith(f"{name}.") for name in settings)), None)
        if names and own not in names and flag is not None:
            raise UserError(
                f"--{flag.replace('_', '-')} is for the model of --{kind}, and --{kind}s does not list it: leave it out"
                + (", or give arguments in braces" if kind == "student" else "")
            )


def _axes(made: Namespace) -> "Axes":
    from crossdistill.training.grid import Axes

    return Axes(
        variants=[parse_variant(text) for text in split_variants(made.methods)],
        seeds=_whole_numbers(made.seeds),
        students=[parse_student(text) for text in split_variants(made.students)],
        teachers=split_variants(made.teachers),
        sweep=_sweep(made.sweep) if made.sweep else None,
    )


def parse_student(text: str) -> "Student":
    """Read a model's name, or "name{argument=value,...}". Raises UserError."""
    from crossdistill.training.grid import Student

    name, _, changes = text.partition("{")
    if changes and not changes.endswith("}"):
        raise UserError(f"student {text!r}: write a name, or name{{argument=value,...}}")
    return Student(text, name, _options(f"student {text!r}", changes.removesuffix("}")) if changes else {})


def _sweep(text: str) -> "Sweep":
    from crossdistill.training.grid import Sweep

    name, equals, values = text.partition("=")
    if not equals:
        raise UserError(f"--sweep is {text!r}; write a setting and its values: options.kd.temperature=1,2,4")
    name = name.strip().replace("-", "_")
    return Sweep(
        name, tuple(_value(f"--sweep {name}", value) for value in re.split(r",(?![^\[]*\])", values) if value.strip())
    )


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = (int(found.group(1)), int(found.group(2))) if found else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--shard is {text!r}; it must be i/n with i from 1 to n")
    return number, count


def split_variants(text: str) -> list[str]:
    """Split "none,rsd{kappa=0,weight=0.2}" at the commas that are outside braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", text) if part.strip()]


def _without_options(text: str) -> str:
    plain = re.sub(r"\{[^{}]*\}", "", text)
    if "{" in plain or "}" in plain:
        raise UserError(f"method {text!r}: write a name, or name{{option=value,...}}")
    return plain


def parse_variant(text: str) -> "Variant":
    """Read a method, "method{option=value,...}", or a sum of these. Raises UserError."""
    from crossdistill.methods import options_key
    from crossdistill.training.grid import Variant

    names, options = [], {}
    for part in re.split(r"\+(?![^{]*\})", text):
        named = re.fullmatch(r"([^{}]+)(?:\{(.*)\})?", part.strip())
        if not named:
            raise UserError(f"method {text!r}: write a name, or name{{option=value,...}}")
        name, changes = named.groups()
        names.append(name)
        if changes:
            options[options_key(name)] = _options(f"method {text!r}", changes)
    return Variant(text, "+".join(names), options)


def _options(what: str, changes: str) -> dict[str, Any]:
    options = {}
    for change in re.split(r",(?![^\[]*\])", changes):
        option, equals, value = change.partition("=")
        if change and not equals:
            raise UserError(f"{what}: {change!r} is not option=value")
        if change:
            options[option.strip()] = _value(what, value)
    return options


def _value(what: str, text: str) -> Any:
    try:
        return load_yaml(text.strip())
    except yaml.YAMLError:
        raise UserError(f"{what}: {text!r} is not a value") from None


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in str(text).split(",") if part.strip()]
    except ValueError:
        raise UserError(f"--seeds is {text!r}; give whole numbers with commas, e.g. 0,1,2") from None
