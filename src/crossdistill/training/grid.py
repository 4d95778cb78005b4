"""What a comparison trains: every student by every teacher, method, setting and seed, each run once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from crossdistill.config import ModelConfig, RunConfig
from crossdistill.config.files import BALANCE, OF_TEACHER, to_dict, with_changes
from crossdistill.config.teacher import teacher_config
from crossdistill.errors import UserError
from crossdistill.files import shortest_endings
from crossdistill.methods import NONE, MethodChoice, choose_method, options_for, options_key
from crossdistill.training.checkpoints import run_identity

_OWN_FLAGS = ("student", "teacher", "teacher_checkpoint", "method", "seed", "data", "out", "role")


@dataclass(frozen=True)
class Variant:
    """A method with options of its own, by method, which replace the recipe's; `label` names it in tables."""

    label: str
    method: str
    options: Mapping[str, Mapping[str, Any]]

    def applied(self, config: RunConfig) -> RunConfig:
        """Return the settings of a run of this variant."""
        options = {key: {**config.options.get(key, {}), **values} for key, values in self.options.items()}
        return replace(config, method=self.method, options={**config.options, **options})

    def choice(self, config: RunConfig) -> MethodChoice:
        """Return the method with its options. Raises UserError."""
        return choose_method(self.method, options_for(self.method, self.applied(config).options))


@dataclass(frozen=True)
class Student:
    """A student by name, with arguments of its own; `label` names it in tables."""

    label: str
    name: str
    args: Mapping[str, Any]

    def applied(self, config: RunConfig) -> RunConfig:
        """Return the settings with this student. What the recipe says of its own student is for that one alone."""
        model = config.model
        if self.name != config.student:
            model = replace(
                model, student_args={}, student_stages=None, student_checkpoint=None, student_checkpoint_key=None
            )
        model = replace(model, student_args={**model.student_args, **self.args})
        return replace(config, student=self.name, model=model)


@dataclass(frozen=True)
class Sweep:
    """One setting by its dotted name, and the values that it takes in turn."""

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.name in _OWN_FLAGS or self.name.startswith("teacher_training"):
            flags = {"student": "--students", "teacher": "--teachers", "method": "--methods", "seed": "--seeds"}
            other = f"; give several with {flags[self.name]}" if self.name in flags else ""
            raise UserError(f"--sweep {self.name}: this cannot be swept{other}")
        if not self.values:
            raise UserError(f"--sweep {self.name}: give at least one value, as {self.name}=0.1,0.3")
        if twice := next((value for value in self.values if self.values.count(value) > 1), None):
            raise UserError(f"--sweep {self.name}: the value {twice!r} is given twice")


@dataclass(frozen=True)
class Axes:
    """The values of a comparison on each axis. Without students or teachers, those of the settings are used."""

    variants: Sequence[Variant]
    seeds: Sequence[int]
    students: Sequence[Student] = ()
    teachers: Sequence[str] = ()
    """Folders of runs, or names of models that are trained first."""
    sweep: Sweep | None = None

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds:
            raise UserError("nothing to compare: give at least one method and one seed")
        variants, students = [one.label for one in self.variants], [one.label for one in self.students]
        listed = {"methods": variants, "students": students, "teachers": list(self.teachers)}
        for flag, values in {**listed, "seeds": list(map(str, self.seeds))}.items():
            if twice := next((value for value in values if values.count(value) > 1), None):
                raise UserError(f"--{flag}: {twice!r} is named twice")


@dataclass(frozen=True)
class Cell:
    """One run of a comparison. `student`, `teacher` and `setting` are "" where the comparison has one only.

    `teacher` is the name of a model, or the end of the path of a run, as much as is needed to tell it from others.
    """

    variant: Variant
    student: str
    teacher: str
    setting: str
    seed: int
    config: RunConfig
    """Its settings; the folder, and a teacher that is trained first, are added later."""
    place: str = ""
    """The folder that an earlier command has put it into, where that has another name."""

    @property
    def label(self) -> str:
        """Name its row in tables: all that differs from other runs but the seed."""
        return "  ".join(part for part in (self.student, self.teacher, self.variant.label, self.setting) if part)

    @property
    def folder(self) -> str:
        """Name its folder."""
        if self.place:
            return self.place
        parts = (self.student, self.teacher, self.variant.label, self.setting)
        return f"{'--'.join(plain_name(part) for part in parts if part)}-s{self.seed}"

    @property
    def teacher_to_train(self) -> str | None:
        """Name the teacher that has to be trained first; None where there is none. Raises UserError for several.

        Without labels none can be trained: the teacher has pretrained weights.
        """
        config = self.config
        needs = self.variant.choice(config).needs.teacher
        if config.teacher_checkpoint is not None or config.loader.labels == "none" or not needs:
            return None
        return str(teacher_config(self.config).student)


def plain_name(text: str) -> str:
    """Return a text as the name of a file on any system."""
    return re.sub(r"[^\w=.+-]+", "_", text).strip("_")


def make_cells(config: RunConfig, axes: Axes) -> list[Cell]:
    """Return all runs, seed by seed, so that an early table compares equal numbers of runs.

    A method that reads no teacher has one run for all teachers, and one for all values of an option of another method.
    Raises UserError for invalid settings.
    """
    _check_sweep(axes)
    names = _teacher_labels(axes.teachers)
    cells: dict[tuple[str, int], Cell] = {}
    for seed in axes.seeds:
        for student in axes.students or (None,):
            for teacher in axes.teachers or ("",):
                for variant in axes.variants:
                    for setting, changes in _settings(axes.sweep, variant, config):
                        made = config if student is None else student.applied(config)
                        made = replace(variant.applied(with_changes(made, changes, "--sweep ")), seed=seed)
                        reads = variant.choice(made).needs.teacher
                        if teacher:
                            # Also where it reads none: what is decided by the teacher's size is the same for all.
                            made = with_teacher(made, teacher)
                        label = "" if student is None else student.label
                        cell = Cell(variant, label, names.get(teacher, "") if reads else "", setting, seed, made)
                        cells.setdefault((cell.label, seed), cell)
    folders = [cell.folder for cell in cells.values()]
    if twice := next((name for name in folders if folders.count(name) > 1), None):
        raise UserError(f"two runs would have the folder {twice!r}; give their models or values other names")
    _check_different(cells.values())
    return list(cells.values())


def _check_different(cells: Iterable[Cell]) -> None:
    """Raise UserError for two runs with equal settings, as kd{temperature=2} and kd{temperature=2.0}."""
    known: dict[str, Cell] = {}
    for cell in cells:
        same = known.setdefault(run_identity(to_dict(cell.config), {}), cell)
        if same is not cell:
            raise UserError(
                f"the runs {same.folder!r} and {cell.folder!r} have the same settings; leave one of them out"
            )


def _check_sweep(axes: Axes) -> None:
    """Raise UserError for a sweep of a setting that another axis decides."""
    if axes.sweep is None:
        return
    name = axes.sweep.name
    options = [(key, option) for one in axes.variants for key, values in one.options.items() for option in values]
    owned = {f"options.{key}.{option}" for key, option in options}
    owned |= {f"model.student_args.{key}" for one in axes.students for key in one.args}
    if name in owned:
        raise UserError(f"--sweep {name}: a method or a student in braces sets it as well; leave it out there")
    of_teacher = name.startswith("model.teacher_") and any(Path(one).is_dir() for one in axes.teachers)
    if of_teacher:
        raise UserError(f"--sweep {name}: the folder of a run states it of its teacher; it cannot be swept")


def _teacher_labels(teachers: Sequence[str]) -> dict[str, str]:
    """Name each teacher: a model by its name, a run by as many last parts of its path as tell it from the others."""
    whole = [str(Path(teacher).resolve()) if Path(teacher).is_dir() else teacher for teacher in teachers]
    return dict(zip(teachers, shortest_endings(whole), strict=True))


def _settings(sweep: Sweep | None, variant: Variant, config: RunConfig) -> Iterable[tuple[str, dict[str, Any]]]:
    """Return the values of a sweep, with their labels; one without, where a method does not read the setting."""
    if sweep is None:
        return [("", {})]
    group, _, rest = sweep.name.partition(".")
    if group == "options" and rest.split(".")[0] not in map(options_key, variant.method.split("+")):
        return [("", {})]
    if variant.method == NONE and sweep.name == BALANCE:
        return [("", {})]
    if sweep.name.startswith(OF_TEACHER) and not variant.choice(config).needs.teacher:
        return [("", {})]
    return [(f"{sweep.name.rpartition('.')[2]}={value}", {sweep.name: value}) for value in sweep.values]


def with_teacher(config: RunConfig, teacher: str) -> RunConfig:
    """Return the settings with a teacher by the folder of its run, or by its name; the latter is trained first.

    What the recipe says of its own teacher is for that one alone.
    """
    if Path(teacher).is_dir():
        return taught_by(replace(config, teacher=None), Path(teacher))
    model = config.model
    if teacher != config.teacher:
        model = replace(model, teacher_args={}, teacher_stages=None, teacher_img_size=None)
    return replace(config, teacher=teacher, teacher_checkpoint=None, model=model)


def with_teacher_of(config: RunConfig, other: RunConfig) -> RunConfig:
    """Return the settings of a run that reads no teacher, with what another run says of one."""
    names = [one.name for one in fields(ModelConfig) if one.name.startswith("teacher")]
    model = replace(config.model, **{name: getattr(other.model, name) for name in names})
    config = replace(config, teacher=other.teacher, teacher_checkpoint=other.teacher_checkpoint)
    return replace(config, teacher_weights=other.teacher_weights, model=model)


def taught_by(config: RunConfig, teacher: Path) -> RunConfig:
    """Return the settings with a finished run as the teacher; the run states what its model was built with."""
    model = replace(config.model, teacher_args={}, teacher_img_size=None, teacher_stages=None, teacher_pretrained=False)
    return replace(config, teacher_checkpoint=str(teacher), model=model)
