"""`crossdistill teacher`."""

from collections.abc import Sequence

from crossdistill.commands._run import RunParser, first_look, for_teacher, read_recipe
from crossdistill.commands._show import consoles, show_run
from crossdistill.commands.fit import add_resume, stored_config
from crossdistill.config.teacher import teacher_config

ABOUT = "Train or fine-tune the model named by --teacher on the labels, to be a teacher later."
_UNREAD = (
    "student",
    "method",
    "options",
    "teacher_weights",
    "teacher_training",
    "cache",
    "cache_top_k",
    "cache_dtype",
    "trust_teacher",
    "model.student_pretrained",
    "model.student_checkpoint",
    "model.student_args",
    "model.student_stages",
    "model.teacher_classes",
    "optim.task_weight",
)


def run(argv: Sequence[str]) -> int:
    """Train a teacher."""
    parser = RunParser("teacher", ABOUT, unread=_UNREAD)
    add_resume(parser)
    stored = stored_config(argv)
    if stored is not None and first_look(argv).teacher is None:
        # The stored settings are already those of the teacher's own run.
        config, _ = parser.read_run(argv, stored)
    else:
        config = teacher_config(parser.read_run(argv, for_teacher(read_recipe(argv)))[0])
    from crossdistill.training.fit import fit

    _, progress = consoles()
    return show_run(fit(config, resume=stored is not None or first_look(argv).resume, console=progress))
