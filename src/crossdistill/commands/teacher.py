"""`crossdistill teacher`."""

from collections.abc import Sequence

from crossdistill.commands._run import RunParser, read_early_flags, read_recipe
from crossdistill.commands._show import consoles, show_run
from crossdistill.commands.fit import add_resume, read_resumed
from crossdistill.config.teacher import teacher_config, with_teacher_training
from crossdistill.errors import UserError

ABOUT = "Train or fine-tune the model named by --teacher on the labels, to be a teacher later."
_UNREAD = (
    "student",
    "method",
    "options",
    "teacher_weights",
    "cache",
    "cache_top_k",
    "cache_dtype",
    "model.student_pretrained",
    "model.student_checkpoint",
    "model.student_args",
    "model.student_stages",
    "model.teacher_classes",
    "optim.task_weight",
    "augment.teacher_view",
)


def run(argv: Sequence[str]) -> int:
    """Train a teacher."""
    parser = RunParser("teacher", ABOUT, unread=_UNREAD)
    add_resume(parser)
    parser.add_argument(
        "--probe",
        action="store_true",
        help="Keep the model frozen and fit a linear classifier on its embeddings, in minutes.",
    )
    stored, resume = read_resumed(argv)
    if stored is not None and read_early_flags(argv).teacher is None:
        # The stored settings are already those of the teacher's own run.
        config, made = parser.read_run(argv, stored)
    else:
        # Flags replace the recipe's settings for the teacher's training as well as the others.
        given, made = parser.read_run(argv, with_teacher_training(read_recipe(argv)))
        config = teacher_config(given)
    _, progress = consoles()
    if made.probe:
        if resume:
            raise UserError("--probe takes minutes and is not resumed; leave --resume out")
        from crossdistill.training.probe import probe_teacher

        return show_run(probe_teacher(config, progress))
    from crossdistill.training.fit import fit

    return show_run(fit(config, resume=resume, console=progress))
