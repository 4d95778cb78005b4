from dataclasses import dataclass, replace

import pytest

from crossdistill import UserError
from crossdistill.config import AugmentConfig, EngineConfig, LoaderConfig, ModelConfig, OptimConfig, RunConfig
from crossdistill.config.validation import validated


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AugmentConfig(scale=(0.5, 0.2)), "two fractions of the area in"),
        (lambda: AugmentConfig(hflip=2.0), "less than or equal to 1"),
        (lambda: AugmentConfig(crop="middle"), "'auto', 'resized', 'padded' or 'none'"),
        (lambda: AugmentConfig(crop_pct=0.01), "between 0.1 and 1"),
        (lambda: AugmentConfig(crop_pct=float("nan")), "crop_pct"),
        (lambda: OptimConfig(ema=1.5), "less than or equal to 1"),
        (lambda: OptimConfig(clip_grad=0.0), "greater than 0"),
        (lambda: OptimConfig(lr=float("nan")), "finite"),
        (lambda: OptimConfig(lr=float("inf")), "finite"),
        (lambda: OptimConfig(label_smoothing=1.0), "less than 1"),
        (lambda: LoaderConfig(batch_size=1), "greater than or equal to 2"),
        (lambda: LoaderConfig(workers=True), "workers is True; it must be a whole number"),
        (lambda: LoaderConfig(max_train=1), "greater than or equal to 2"),
        (lambda: LoaderConfig(in_chans=2), "1 or 3"),
        (lambda: ModelConfig(teacher_img_size=[32, 0]), "it must be a number of pixels from 1 to 8192"),
        (lambda: EngineConfig(devices=0), "at least 1, or -1 for all"),
        (lambda: EngineConfig(devices=-2), "greater than or equal to -1"),
        (lambda: RunConfig(epochs=0), "greater than or equal to 1"),
        (lambda: RunConfig(epochs=2.0), "epochs is 2.0; it must be a whole number"),
        (lambda: replace(RunConfig(), seed=-1), "greater than or equal to 0"),
        (lambda: RunConfig(nonsense=1), "nonsense"),
        (lambda: RunConfig(seed=2**32), "less than or equal to 4294967295"),
    ],
)
def test_a_value_is_checked_wherever_settings_are_made(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_settings_that_exclude_each_other():
    for augment in (AugmentConfig(mixup=0.2), AugmentConfig(cutmix=1.0)):
        with pytest.raises(UserError, match="mixup and CutMix cannot be used with a teacher cache"):
            RunConfig(cache="auto", augment=augment)
    with pytest.raises(UserError, match=r"loader\.batch_size 7 is odd"):
        RunConfig(augment=AugmentConfig(mixup=0.2), loader=LoaderConfig(batch_size=7))
    with pytest.raises(UserError, match=r"which engine.strategy fsdp does not allow"):
        RunConfig(engine=EngineConfig(strategy="fsdp"), optim=OptimConfig(ema=0.9))


def test_off_is_a_value_and_no_folder():
    for value in ("off", False, None):
        assert not RunConfig(cache=value).cached
    assert RunConfig(cache="auto").cached
    assert RunConfig(cache="runs/cache/mine").cached


@dataclass(frozen=True)
class Plain:
    """Options of somebody else's method: a standard dataclass."""

    weight: float = 1.0
    names: tuple[str, ...] = ()


def test_options_of_any_dataclass_are_checked():
    owner = "method 'own': "
    assert validated(Plain, {"weight": 2, "names": ["a"]}, owner, "option") == Plain(2.0, ("a",))
    with pytest.raises(UserError, match="method 'own': unknown option 'wieght'; did you mean 'weight'"):
        validated(Plain, {"wieght": 2}, owner, "option")
    with pytest.raises(UserError, match=r"method 'own': weight is \[1\]; it must be a number"):
        validated(Plain, {"weight": [1]}, owner, "option")


def test_arguments_that_a_setting_decides_are_refused():
    for name in ("num_classes", "img_size", "pretrained"):
        with pytest.raises(UserError, match=f"'{name}' is not for the constructor"):
            ModelConfig(student_args={name: 3})


def test_the_place_of_a_problem_is_one_line(tmp_path):
    from crossdistill.cache.store import read_manifest

    (tmp_path / "cache.json").write_text('{"format": {}, "fingerprint": {"a\\nb": null}}', encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_manifest(tmp_path)
    assert "\n" not in str(refused.value)
