import pytest

from crossdistill import UserError
from crossdistill.config import ModelConfig, OptimConfig, RunConfig
from crossdistill.config.teacher import teacher_config


def test_the_teachers_own_run():
    config = RunConfig(
        student="vit",
        teacher="cnn",
        method="rsd",
        options={"rsd": {"kappa": 0.5}},
        cache="auto",
        teacher_checkpoint="w.pth",
        teacher_training={"epochs": 7, "optim.lr": 0.5},
        img_size=32,
        model=ModelConfig(
            student_args={"depth": 3}, teacher_args={"width": 4}, teacher_img_size=48, teacher_pretrained=True
        ),
        optim=OptimConfig(task_weight=0.0),
    )
    own = teacher_config(config)
    assert (own.role, own.student, own.teacher, own.method) == ("teacher", "cnn", None, "none")
    assert (own.epochs, own.optim.lr, own.optim.task_weight, own.img_size) == (7, 0.5, 1.0, 48)
    assert (own.model.student_args, own.model.teacher_args) == ({"width": 4}, {})
    assert (own.model.student_pretrained, own.model.student_checkpoint) == (True, "w.pth")
    assert (own.cached, own.options, own.teacher_training) == (False, {}, {})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RunConfig(), "no teacher is named"),
        (RunConfig(teacher=["a", "b"]), "several teachers are trained one after the other"),
        (RunConfig(teacher="a", teacher_checkpoint=["x", "y"]), "starts from one checkpoint"),
        (RunConfig(teacher="a", model=ModelConfig(teacher_img_size=[32, 48])), "a teacher is trained at one"),
        (RunConfig(teacher="a", teacher_training={"epoch": 3}), "teacher_training: unknown setting 'epoch'"),
    ],
)
def test_what_is_no_teacher(config, message):
    with pytest.raises(UserError, match=message):
        teacher_config(config)
