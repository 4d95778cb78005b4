from dataclasses import dataclass, field, replace

import pytest

from crossdistill import UserError
from crossdistill.config import AugmentConfig, EngineConfig, LoaderConfig, ModelConfig, OptimConfig, RunConfig
from crossdistill.config.resolve import resolve


@dataclass
class Data:
    """What is asked of a data set."""

    size: tuple[int, int] = (32, 32)
    long: bool = False
    channels: int = 3
    train: list = field(default_factory=lambda: [0] * 1000)


def decided(config=None, data=None, own_size=lambda name: {"vit": 224, "big": 384}.get(name, 224)):
    return resolve(config or RunConfig(student="vit", teacher="big"), data or Data(), own_size)


def test_small_images():
    config = decided()
    assert config.img_size == 32
    assert (config.model.stem, config.model.teacher_stem, config.model.teacher_img_size) == ("small", "small", [32])
    assert (config.augment.crop, config.augment.crop_pct) == ("padded", 1.0)
    assert (config.loader.resident, config.loader.in_chans, config.loader.views) == (True, 3, None)
    assert decided(data=Data(size=(8, 8), channels=1)).img_size == 32
    assert decided(data=Data(size=(40, 64))).img_size == 64


def test_large_images():
    config = decided(data=Data(size=(300, 400)))
    assert (config.img_size, config.model.teacher_img_size) == (224, [384])
    assert (config.model.stem, config.augment.crop, config.augment.crop_pct) == ("native", "resized", 0.875)
    assert config.loader.resident is False
    given = decided(RunConfig(student="vit", teacher="big", img_size=96), Data(size=(300, 400)))
    assert (given.img_size, given.model.teacher_img_size) == (96, [96])


def test_what_is_given_is_kept():
    config = RunConfig(
        student="vit",
        teacher="big",
        img_size=48,
        model=ModelConfig(stem="native", teacher_stem="small", teacher_img_size=64),
        augment=AugmentConfig(crop="none", crop_mode="squash", crop_pct=0.9, teacher_view="student"),
        loader=LoaderConfig(resident=False, views=3),
        engine=EngineConfig(channels_last=False),
        optim=OptimConfig(warmup_epochs=1.0),
    )
    same = decided(config)
    assert same == replace(config, loader=replace(config.loader, in_chans=3))


def test_deciding_again_changes_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    cases = [RunConfig(student="vit", teacher="big"), RunConfig(student="vit", teacher=["big", "vit"], cache="auto")]
    cases.append(RunConfig(student="vit", teacher_checkpoint=str(tmp_path / "run")))
    for config in cases:
        for data in (Data(), Data(size=(300, 400))):
            once = decided(config, data)
            assert decided(once, data) == once
            assert "auto" not in (once.model.stem, once.augment.crop, once.engine.channels_last)


def test_a_finished_run_knows_its_own_size(tmp_path):
    (tmp_path / "run").mkdir()
    config = RunConfig(student="vit", teacher=["big", "big"], teacher_checkpoint=[str(tmp_path / "run"), "w.pth"])
    assert decided(config, Data(size=(300, 400))).model.teacher_img_size == [None, 384]
    alone = RunConfig(student="vit", teacher_checkpoint=str(tmp_path / "run"))
    assert decided(alone).model.teacher_img_size is None


def test_pretrained_models_keep_their_stem():
    config = RunConfig(student="vit", teacher="big", model=ModelConfig(teacher_pretrained=True))
    assert (decided(config).model.stem, decided(config).model.teacher_stem) == ("small", "native")


def test_a_cache_has_as_many_views_as_epochs_and_at_most_ten():
    for epochs, views in ((3, 3), (30, 10)):
        assert decided(RunConfig(student="vit", teacher="big", epochs=epochs, cache="auto")).loader.views == views


def test_a_short_run_has_a_short_warm_up():
    assert decided(RunConfig(student="vit", epochs=8)).optim.warmup_epochs == pytest.approx(0.8)
    assert decided(RunConfig(student="vit", epochs=100)).optim.warmup_epochs == 5


def test_which_images_live_on_the_device():
    flips = AugmentConfig(crop="padded")
    base = RunConfig(student="vit", augment=flips)

    def resident(size, images=1000, **loader):
        data = Data(size=(size, size), train=[0] * images)
        return decided(replace(base, img_size=size, loader=LoaderConfig(**loader)), data).loader.resident

    assert resident(32, 50_000)
    assert not resident(224)
    assert resident(224, resident=True)
    assert not resident(32, resident=False)
    assert not resident(64, 1_200_000)  # 14 GiB
    strong = replace(base, augment=replace(flips, auto_augment="rand-m9-mstd0.5"))
    assert not decided(strong).loader.resident
    with pytest.raises(UserError, match=r"augment.auto_augment is 'rand-m9-mstd0.5', which is done image by image"):
        decided(replace(strong, loader=LoaderConfig(resident=True)))
    with pytest.raises(UserError, match="crop is 'resized'"):
        decided(replace(base, augment=AugmentConfig(crop="resized"), loader=LoaderConfig(resident=True)))


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (EngineConfig(), True),
        (EngineConfig(devices=2), True),
        (EngineConfig(devices=2, strategy="fsdp"), False),
        (EngineConfig(devices=2, shard_teacher=True), False),
        (EngineConfig(channels_last=False), False),
    ],
)
def test_channels_last_unless_weights_are_sharded(engine, expected):
    assert decided(RunConfig(student="vit", engine=engine)).engine.channels_last is expected


def test_channels_last_weights_are_not_sharded():
    for sharded in ({"strategy": "fsdp"}, {"shard_teacher": True}):
        with pytest.raises(UserError, match=r"set engine\.channels_last to false"):
            EngineConfig(devices=2, channels_last=True, **sharded)


def test_a_teacher_of_other_proportions_sees_the_same_part():
    data = Data(size=(600, 600))

    def view(size, teacher, **augment):
        model = ModelConfig(teacher_img_size=teacher)
        config = RunConfig(student="vit", teacher="big", img_size=size, model=model, augment=AugmentConfig(**augment))
        return decided(config, data).augment.teacher_view

    assert view(96, 192) == "own"
    assert view("192x96", "192x192") == "own"  # wider alone
    assert view("192x96", 192, crop_mode="center") == "student"
    assert view("192x96", "384x192", crop_mode="center") == "own"
    with pytest.raises(UserError, match="other proportions"):
        view("192x96", 192, crop_mode="center", teacher_view="own")


@pytest.mark.parametrize("data", [Data(), Data(size=(600, 600))], ids=["32 px", "600 px"])
def test_pretrained_weights_are_used_at_their_own_size(data):
    """A student of 96 px does not make its teacher one of 96 px; a file does not state a size."""
    model = ModelConfig(teacher_pretrained=True)
    for config, size in (
        (RunConfig(student="vit", teacher="big", img_size=96, model=model), 384),
        (RunConfig(student="vit", teacher="hf:somewhere", img_size=96), 224),
        (RunConfig(student="vit", teacher="big", teacher_checkpoint="weights.pth", img_size=96), 96),
        (RunConfig(student="vit", teacher="big", img_size=96, model=replace(model, teacher_img_size=160)), 160),
    ):
        found = decided(config, data)
        sizes = found.model.teacher_img_size
        assert (sizes[0] if isinstance(sizes, list) else sizes) == size
        assert found.augment.teacher_view == ("own" if data.size[0] > 96 and size > 96 else "student")


def test_a_file_of_weights_keeps_the_stem_unless_a_run_with_the_small_one_wrote_it(tmp_path):
    """ImageNet's weights fit a network without its strides, and give other numbers."""

    def stems(**settings):
        def small(weights):
            return "small" in weights

        config = RunConfig(student="vit", teacher="big", **settings)
        model = resolve(config, Data(), lambda name: 224, has_small_stem=small).model
        return model.stem, model.teacher_stem

    assert stems() == ("small", "small")
    assert stems(teacher_checkpoint="w.pth") == ("small", "native")
    assert stems(teacher_checkpoint="small.pth") == ("small", "small")
    assert stems(model=ModelConfig(student_checkpoint="w.pth")) == ("native", "small")
    assert stems(model=ModelConfig(student_checkpoint="small.pth")) == ("small", "small")
    assert stems(teacher_checkpoint="w.pth", model=ModelConfig(teacher_stem="small")) == ("small", "small")
    config = RunConfig(student="vit", teacher=["big", "big"], teacher_checkpoint=["w.pth", "small.pth"])
    with pytest.raises(UserError, match=r"'small\.pth' are of a network with the small stem, those of 'w\.pth'"):
        resolve(config, Data(), lambda name: 224, has_small_stem=lambda weights: "small" in weights)


def test_own_code_keeps_its_stem():
    model = decided(RunConfig(student="own.code:network", teacher="own.code:network")).model
    assert (model.stem, model.teacher_stem) == ("native", "native")


def test_a_pretrained_teacher_is_trained_at_the_size_of_its_weights():
    config = RunConfig(student="big", role="teacher", model=ModelConfig(student_pretrained=True))
    assert decided(config).img_size == 384
    assert decided(replace(config, img_size=96)).img_size == 96
    assert decided(RunConfig(student="big", role="teacher")).img_size == 32
    assert decided(RunConfig(student="hf:model", role="teacher")).img_size == 224
