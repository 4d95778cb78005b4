from dataclasses import replace

import pytest

from crossdistill import UserError
from crossdistill.config import AugmentConfig, OptimConfig, RunConfig, override, to_dict


def test_override_by_dotted_name_and_nested():
    config = RunConfig(optim=OptimConfig(lr=0.1, weight_decay=0.2))
    changed = override(config, {"epochs": 7, "optim.lr": 1, "optim": {"name": "sgd"}, "loader.max_train": None}, "here")
    assert (changed.epochs, changed.optim.lr, changed.optim.name, changed.optim.weight_decay) == (7, 1.0, "sgd", 0.2)
    assert changed.loader.max_train is None
    assert override(config, {"augment": {"scale": [0.2, 1.0]}}, "here").augment.scale == (0.2, 1.0)
    assert override(config, {"model.student_args": {"depth": 3}}, "here").model.student_args == {"depth": 3}
    assert config.epochs == RunConfig().epochs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 3}, "setting in here 'epoch'; did you mean 'epochs'"),
        ({"optim.lrr": 3}, "setting in here.optim 'lrr'"),
        ({"epochs": "ten"}, "here: epochs is 'ten'; it must be of type"),
        ({"optim.lr": "3"}, "lr is '3'"),
        ({"optim": 3}, "optim is a group of settings, not 3"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_wrong_overrides_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        override(RunConfig(), changes, "here")


@pytest.mark.parametrize(
    "make",
    [
        lambda: AugmentConfig(scale=(0.5, 0.2)),
        lambda: AugmentConfig(hflip=2.0),
        lambda: AugmentConfig(crop="middle"),
        lambda: OptimConfig(ema=1.5),
        lambda: OptimConfig(clip_grad=0.0),
        lambda: RunConfig(epochs=0),
        lambda: replace(RunConfig(), seed=-1),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UserError):
        make()


def test_plain_data_holds_every_field():
    plain = to_dict(RunConfig())
    assert set(plain) == set(RunConfig.__dataclass_fields__)
    assert plain["augment"]["scale"] == [0.08, 1.0]
