"""The command line: one thin function per sub-command. Nothing heavy is imported before it is needed."""

import difflib
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, set_parsing_settings
from typing_extensions import override

from crossdistill.config import RunConfig, parse_value
from crossdistill.errors import UserError, unknown

if TYPE_CHECKING:
    from rich.console import Console

    from crossdistill.report.page import TextTable

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


class _Parser(ArgumentParser):
    """Options with dashes, as people type them; errors are raised, not printed with a usage page."""

    def __init__(self, command: str, about: str) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            prog=f"crossdistill {command}",
            usage=f"crossdistill {command} [options]",
            description=about,
            exit_on_error=False,
            allow_abbrev=False,
        )

    @override
    def format_help(self, *args: Any, **kwargs: Any) -> str:
        page = super().format_help(*args, **kwargs)
        return re.sub(r"--[a-z][\w.]+", lambda option: option.group().replace("_", "-"), page)

    def read(self, argv: Sequence[str]) -> Any:
        """Parse. Raises UserError with the nearest option for an unknown one."""
        try:
            return self.parse_args(_with_underscores(argv))
        except (ArgumentError, UnicodeDecodeError) as error:
            raise UserError(self._plain(str(error))) from error

    def _plain(self, message: str) -> str:
        stray = re.search(r"unrecognized arguments: (\S+)", message)
        if stray:
            option = stray.group(1).partition("=")[0]
            known = sorted({o for action in self._actions for o in action.option_strings})
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0].replace('_', '-')}?" if near else f"; see `{self.prog} --help`"
            return f"unknown option {option.replace('_', '-')}{hint}"
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        return " ".join(lines[:3])


def _with_underscores(words: Sequence[str]) -> list[str]:
    return [re.sub(r"^--[\w.-]+", lambda o: "--" + o.group()[2:].replace("-", "_"), word) for word in words]


def _run_parser(command: str, about: str) -> _Parser:
    parser = _Parser(command, about)
    parser.add_argument("--recipe", action=ActionConfigFile, help="A recipe by name, or a YAML file; flags go over it.")
    parser.add_class_arguments(RunConfig)
    return parser


def recipe_path(name: str) -> str:
    """Find a packaged recipe by name, or a YAML file. Raises UserError."""
    folder = files("crossdistill.recipes")
    packaged = folder / f"{name}.yaml"
    if packaged.is_file():
        return str(packaged)
    if Path(name).is_file():
        return name
    known = [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    raise unknown("recipe (neither a file nor a name)", name, known)


def _with_recipes(argv: Sequence[str]) -> list[str]:
    words = list(argv)
    for i, word in enumerate(words):
        if word == "--recipe" and i + 1 < len(words):
            words[i + 1] = recipe_path(words[i + 1])
        elif word.startswith("--recipe="):
            words[i] = f"--recipe={recipe_path(word.partition('=')[2])}"
    return words


def _split_off(group: str, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--GROUP.NAME VALUE` out of the words, so that one flag changes one entry and leaves a recipe's others."""
    rest, entries = [], dict[str, Any]()
    following = iter(words)
    for word in following:
        named = re.match(rf"--{group}\.([^=]+)(?:=(.*))?$", word)
        if not named:
            rest.append(word)
            continue
        name, value = named.groups()
        value = next(following, "") if value is None else value
        entries[name] = parse_value(value)
    return rest, entries


def _gather(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Make one list of a flag that is given several times."""
    rest: list[str] = []
    values: dict[str, list[str]] = {name: [] for name in names}
    following = iter(words)
    for word in following:
        name, equals, value = word.partition("=")
        if name in values:
            values[name].append(value if equals else next(following, ""))
        else:
            rest.append(word)
    for name, given in values.items():
        if given:
            rest.append(f"{name}={given[0] if len(given) == 1 else json.dumps(given)}")
    return rest


def _config(parser: _Parser, argv: Sequence[str]) -> tuple[RunConfig, Any]:
    words = _gather(_with_underscores(argv), ("--teacher", "--teacher_checkpoint"))
    words, options = _split_off("options", words)
    words, changes = _split_off("teacher_training", words)
    parsed = parser.read(_with_recipes(words))
    for name, value in options.items():
        method, dot, option = name.rpartition(".")
        if not dot:
            raise UserError(f"--options.{name}: name the method too, e.g. --options.rsd.kappa 0.01")
        parsed.options = {**parsed.options, method: {**parsed.options.get(method, {}), option: value}}
    parsed.teacher_training = {**parsed.teacher_training, **changes}
    made = parser.instantiate(parsed)
    return RunConfig(**{name: made[name] for name in RunConfig.__dataclass_fields__}), made


def _consoles() -> "tuple[Console, Console]":
    from rich.console import Console

    return Console(), Console(stderr=True)


def _show(table: "TextTable", console: "Console") -> None:
    from rich import box
    from rich.table import Table

    shown = Table(
        title=table.title, caption=table.note, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )
    for place, head in enumerate(table.header):
        shown.add_column(head, justify="left" if place == 0 else "right", no_wrap=place == 0)
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def _list_of(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _compare(command: str, about: str, argv: Sequence[str], default_out: str) -> int:
    parser = _run_parser(command, about)
    parser.add_argument(
        "--methods", default="none,kd,rsd", help="Methods to compare, with commas; variants as rsd{kappa=0}."
    )
    parser.add_argument("--seeds", default="0,1,2", help="Seeds of each method, with commas.")
    config, made = _config(parser, argv)
    try:
        seeds = [int(seed) for seed in _list_of(str(made.seeds))]
    except ValueError:
        raise UserError(f"--seeds is {made.seeds!r}; give whole numbers with commas, e.g. 0,1,2") from None
    from crossdistill.training.compare import compare, split_variants

    result, progress = _consoles()
    table, page = compare(config, split_variants(made.methods), seeds, Path(config.out or default_out), progress)
    _show(table, result)
    result.print(f"report: {page}", soft_wrap=True, highlight=False)
    return 0


def demo(argv: Sequence[str]) -> int:
    """Train a teacher on scikit-learn's digits, then one student with none, kd and rsd; a few minutes on a CPU."""
    return _compare("demo", str(demo.__doc__), ["--recipe", "demo", *argv], "runs/demo")


def compare(argv: Sequence[str]) -> int:
    """Train one student by several methods over several seeds, on one recipe and one teacher."""
    return _compare("compare", str(compare.__doc__), argv, "runs/compare")


def _resumable(argv: Sequence[str]) -> list[str]:
    """Let `--out DIR --resume` stand for the config stored in DIR.

    A command that SLURM or torchrun has started again goes on with what its first start left.
    """
    words = list(argv)
    outs = [words[i + 1] for i, w in enumerate(words[:-1]) if w == "--out"]
    outs += [w.partition("=")[2] for w in words if w.startswith("--out=")]
    stored = Path(outs[-1]) / "config.yaml" if outs else None
    if stored is None or not stored.is_file():
        return words
    if "--resume" in words:
        return words if "--recipe" in words else ["--recipe", str(stored), *words]
    again = any(int(os.environ.get(name, "0")) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))
    return [*words, "--resume"] if again else words


def fit(argv: Sequence[str]) -> int:
    """Distil a teacher into a student (or train plainly, with --method none)."""
    parser = _run_parser("fit", str(fit.__doc__))
    parser.add_argument(
        "--resume", action="store_true", help="Go on with the run in --out, with the config stored there."
    )
    config, made = _config(parser, _resumable(argv))
    from crossdistill.report.page import accuracy_table
    from crossdistill.training.run import fit as run

    return _report_run(run, accuracy_table, config, made.resume)


def teacher(argv: Sequence[str]) -> int:
    """Train or fine-tune the model named by --teacher on the data, to be a teacher later."""
    parser = _run_parser("teacher", str(teacher.__doc__))
    parser.add_argument(
        "--resume", action="store_true", help="Go on with the run in --out, with the config stored there."
    )
    words = _resumable(argv)
    config, made = _config(parser, words)
    from crossdistill.report.page import accuracy_table
    from crossdistill.training.run import fit as run
    from crossdistill.training.run import teacher_config

    # A stored config is already that of the teacher's own run.
    stored = made.resume and config.teacher is None
    return _report_run(run, accuracy_table, config if stored else teacher_config(config), made.resume)


def cache(argv: Sequence[str]) -> int:
    """Store what the teacher says of every view of the training images, for all runs to come (fit --cache auto)."""
    parser = _run_parser("cache", str(cache.__doc__))
    config, _ = _config(parser, argv)
    from crossdistill.training.cached import write_cache
    from crossdistill.training.engine import is_first_process

    result, progress = _consoles()
    stored = write_cache(config, progress)
    if not is_first_process():
        return 0
    size = stored.format.bytes(stored.views) / 2**20
    result.print(
        f"cache: {stored.folder}\n{stored.views} views of {stored.format.images} images, {size:.1f} MiB",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _report_run(run: Callable[..., Path], table: Callable[..., Any], config: RunConfig, resume: bool) -> int:
    from crossdistill.training.engine import is_first_process

    result, progress = _consoles()
    out = run(config, resume=resume, console=progress)
    if is_first_process():
        metrics = json.loads((out / "metrics.json").read_text())
        roles = [(role, metrics[role]) for role in ("student", "teacher") if role in metrics]
        _show(table(roles), result)
        result.print(f"run: {out}\nreport: {out / 'report.html'}", soft_wrap=True, highlight=False)
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Score a finished run, or a model by name with a checkpoint, on a split of its data or of another set."""
    parser = _run_parser("eval", str(evaluate.__doc__))
    parser.add_argument("scored", metavar="MODEL", type=str, help="Folder of a finished run, or a model's name.")
    parser.add_argument("--split", type=str, default="test", help="train, val or test.")
    parser.add_argument("--checkpoint", type=str | None, default=None, help="Weights of a model given by name.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    # A run is read with its own config: the same data, the same held-out split.
    stored = [Path(word) / "config.yaml" for word in argv if (Path(word) / "config.yaml").is_file()]
    config, made = _config(parser, [*(["--recipe", str(stored[0])] if stored else []), *argv])
    from crossdistill.report.page import accuracy_table
    from crossdistill.training.score import score

    scores = score(made.scored, config, split=made.split, checkpoint=made.checkpoint)
    if made.json:
        print(json.dumps(scores, indent=2))
    else:
        _show(accuracy_table([(made.split, {"name": made.scored, "test": scores})]), _consoles()[0])
    return 0


def models(argv: Sequence[str]) -> int:
    """Print what is read of models: stages, widths, parameters, operations. Without a pattern, the names timm has."""
    parser = _Parser("models", str(models.__doc__))
    parser.add_argument("pattern", nargs="?", type=str, default=None, help="A name or a pattern such as 'resnet*'.")
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument(
        "--img_size", type=int | None, default=None, help="Pixels a side; the model's own if not given."
    )
    parser.add_argument("--small_images", action="store_true", help="With the stem for small images.")
    made = parser.read(argv)
    from crossdistill.report.listing import print_models

    print_models(made.pattern, made.num_classes, made.img_size, made.small_images, *_consoles())
    return 0


def methods(argv: Sequence[str]) -> int:
    """List the methods; with a name, its idea, options, paper, and what it would add for a pair."""
    parser = _Parser("methods", str(methods.__doc__))
    parser.add_argument("name", nargs="?", type=str, default=None)
    parser.add_argument("--student", type=str, default="resnet18", help="Student of the example pair.")
    parser.add_argument(
        "--teacher", type=str, default="swin_tiny_patch4_window7_224", help="Teacher of the example pair."
    )
    made = parser.read(argv)
    from crossdistill.report.listing import print_method, print_methods

    result, _ = _consoles()
    if made.name is None:
        print_methods(result)
    else:
        print_method(made.name, made.student, made.teacher, result)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "teacher": teacher,
    "fit": fit,
    "cache": cache,
    "compare": compare,
    "eval": evaluate,
    "models": models,
    "methods": methods,
}


def _overview() -> str:
    lines = ["usage: crossdistill COMMAND [options]", "", "Move what one vision network knows into another.", ""]
    lines += [f"  {name:<9}{str(command.__doc__).splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`crossdistill COMMAND --help` says more."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command. Gives 0 when done, 2 for wrong input, 130 or 143 when interrupted; other failures raise."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] == "--version":
        from crossdistill import __version__

        print(__version__)
        return 0
    try:
        if words[0] not in COMMANDS:
            raise unknown("command", words[0], COMMANDS)
        return COMMANDS[words[0]](words[1:])
    except UserError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno not in _DISK:
            raise
        return _refuse(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        signum = getattr(error, "signum", None)
        if signum is None:
            raise
        print(f"crossdistill: {error}; go on with --resume", file=sys.stderr)
        return 128 + int(signum)


def _refuse(message: str) -> int:
    # A worker process hands over its whole traceback as the message; the last line is the sentence.
    if "Original Traceback" in message:
        message = message.strip().splitlines()[-1].partition("UserError: ")[2]
    print(f"crossdistill: {message}", file=sys.stderr)
    return 2
