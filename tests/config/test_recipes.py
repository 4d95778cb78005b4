"""The packaged recipes hold the published values, by a table of them."""

from importlib.resources import files

import pytest

from crossdistill.config.files import by_dotted_name, from_dict, read_yaml, recipe_path, to_dict
from crossdistill.config.teacher import teacher_config

PACKAGED = sorted(
    entry.name.removesuffix(".yaml")
    for entry in files("crossdistill.recipes").iterdir()
    if entry.name.endswith(".yaml")
)
PLAIN = {"augment.auto_augment": None, "augment.erasing": 0.0, "augment.mixup": 0.0, "augment.cutmix": 0.0}
MIXED = {
    "augment.auto_augment": "rand-m9-mstd0.5-inc1",
    "augment.erasing": 0.25,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
}
SGD = {"optim.name": "sgd", "optim.momentum": 0.9}
ADAMW = {"optim.name": "adamw", "optim.lr": 5e-4, "optim.weight_decay": 0.05, "optim.clip_grad": 5.0}
COMMON = {"img_size": 224, "model.stem": "native", "augment.crop": "resized", "optim.label_smoothing": 0.1}
COMMON |= {"optim.balance": None}
COMMON |= {"model.student_pretrained": False, "model.teacher_pretrained": True, "augment.color_jitter": 0.0}
KAPPA = {"rsd": {"kappa": 0.01}}
CIFAR = {
    "data": "torch/cifar100",
    "epochs": 300,
    "loader.batch_size": 128,
    "optim.schedule": "cosine",
    "optim.ema": None,
}
PUBLISHED = {
    "cifar100-cnn": SGD
    | PLAIN
    | CIFAR
    | {
        "optim.lr": 0.05,
        "optim.weight_decay": 2e-3,
        "optim.min_lr": 1e-3,
        "optim.warmup_epochs": 3,
        "optim.warmup_lr": 1e-4,
        "optim.clip_grad": None,
        "options": KAPPA | {"ofa": {"weight": 0.1}},
    },
    "cifar100-vit-mlp": ADAMW
    | MIXED
    | CIFAR
    | {"optim.min_lr": 1e-5, "optim.warmup_epochs": 20, "optim.warmup_lr": 5e-7, "options": KAPPA},
    "imagenet-cnn": SGD
    | PLAIN
    | {
        "epochs": 100,
        "loader.batch_size": 8 * 64,
        "optim.lr": 0.1,
        "optim.weight_decay": 1e-4,
        "optim.schedule": "step",
        "optim.decay_epochs": 30,
        "optim.warmup_epochs": 3,
        "optim.warmup_lr": 1e-4,
        "optim.clip_grad": None,
        "optim.ema": None,
        "options": KAPPA,
    },
    "imagenet-vit-mlp": ADAMW
    | MIXED
    | {
        "epochs": 300,
        "loader.batch_size": 1024,
        "model.student_args": {"drop_path_rate": 0.0},
        "optim.schedule": "cosine",
        "optim.min_lr": 1e-6,
        "optim.warmup_epochs": 20,
        "optim.warmup_lr": 5e-7,
        "optim.ema": 0.99996,
        "options": KAPPA,
    },
}
TEACHERS = {"epochs": 300, "optim.name": "adamw", "optim.lr": 5e-5, "optim.weight_decay": 0.05}


def recipe(name):
    return from_dict(read_yaml(recipe_path(name)), f"in {name}: ")


def differing(config, published):
    values = by_dotted_name(to_dict(config))
    return {key: values[key] for key, value in published.items() if values[key] != value}


@pytest.mark.parametrize("name", PUBLISHED)
def test_students_are_trained_as_published(name):
    published = COMMON | PUBLISHED[name]
    assert differing(recipe(name), published) == {}
    # Nothing else is set but what concerns the machine, the pair and the data.
    given = set(by_dotted_name(read_yaml(recipe_path(name)))) - set(published)
    here = {
        "teacher",
        "student",
        "data",
        "loader.workers",
        "loader.val_fraction",
        "engine.precision",
        "teacher_training",
    }
    assert given <= here


@pytest.mark.parametrize("name", ["cifar100-cnn", "cifar100-vit-mlp"])
def test_teachers_are_fine_tuned_as_published(name):
    config = teacher_config(recipe(name))
    assert differing(config, TEACHERS | {"model.student_pretrained": True}) == {}
    # What the student's recipe says beside it must fit the smaller rate.
    assert max(config.optim.min_lr, config.optim.warmup_lr) < config.optim.lr


@pytest.mark.parametrize("name", ["cifar100-cpu-cnn", "cifar100-cnn"])
def test_cnn_students_on_cifar_have_ofas_published_weight(name):
    assert recipe(name).options["ofa"] == {"weight": 0.1}


@pytest.mark.parametrize("name", PACKAGED)
def test_every_recipe_can_be_read_and_says_what_it_is(name):
    text = recipe_path(name).read_text()
    assert text.startswith("# ")
    assert teacher_config(recipe(name)).role == "teacher"
    if name in PUBLISHED:
        assert "# Source: " in text
        assert "# Deviations:" in text
