"""The real command line, in this process: what it prints and how it exits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crossdistill.cli import COMMANDS, main, recipe_path
from crossdistill.config import RunConfig

TINY = [
    "--student", "test_vit", "--data", "digits", "--img-size", "32", "--epochs", "2", "--model.stem", "native",
    "--model.student-args.patch_size", "8", "--loader.batch-size", "64", "--loader.max-train", "192",
    "--augment.hflip", "0", "--engine.accelerator", "cpu", "--engine.threads", "1", "--optim.lr", "2e-3",
]  # fmt: skip


def run(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom crossdistill.cli import main\n"
        "main(['--help'])\n"
        "for command in ('fit', 'demo', 'teacher', 'compare', 'eval', 'models', 'methods'):\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0, command\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in COMMANDS:
        assert f"\n  {command} " in shown
    assert "--loader.batch-size" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt"], "unknown command 'fitt'; did you mean 'fit'?"),
        (["fit", "--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
        (["fit", "--optim.lrr=1"], "unknown option --optim.lrr; did you mean --optim.lr?"),
        (["fit", "--epochs", "many"], "epochs"),
        (["fit", "--epochs", "0"], "epochs is 0; it must be at least 1"),
        (["fit", "--method", "rds"], "unknown method 'rds'; did you mean 'rsd'?"),
        (["fit", "--method", "rsd"], "method 'rsd' needs a teacher"),
        (["fit", "--options.rds.kappa", "1", "--method", "none"], "unknown method 'rds'"),
        (["fit", "--method", "none", "--student", "resnet19"], "unknown model 'resnet19'; did you mean"),
        (["fit", "--method", "none", "--optim.name", "adamww"], "unknown optimiser 'adamww'; did you mean 'adamw'?"),
        (["fit", "--method", "none", "--optim.schedule", "cosin"], "did you mean 'cosine'?"),
        (["fit", "--method", "none", "--data", "/no/such/folder"], "no such folder"),
        (["fit", "--method", "none", "--optim.lr", "-1"], "optim.lr is -1.0; it must be positive"),
        (["fit", "--recipe", "dmo"], "did you mean 'demo'?"),
        (["fit", "--augment.mixup", "1", "--loader.batch-size", "7"], "loader.batch_size 7 is odd"),
        (["demo", "--seeds", "a,b"], "give whole numbers with commas"),
        (["teacher", "--data", "digits"], "no teacher is named"),
        (["eval", "nothing"], "is no folder of a run"),
        (["models", "resnet18x"], "unknown model 'resnet18x'; did you mean 'resnet18'?"),
        (["methods", "rds"], "did you mean 'rsd'?"),
    ],
)
def test_wrong_words_are_answered_in_a_line_or_two(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2
    assert not list(tmp_path.rglob("config.yaml"))


def test_wrong_options_of_a_method_and_wrong_checkpoints(capsys, tmp_path, teacher_folder):
    given = [*TINY, "--method", "rsd", "--out", tmp_path / "run"]
    code, _, err = run(capsys, "fit", *given, "--teacher-checkpoint", teacher_folder, "--options.rsd.kapa", "1")
    assert (code, "did you mean 'kappa'?" in err) == (2, True)
    code, _, err = run(
        capsys, "fit", *given, "--method", "kd", "--teacher-checkpoint", tmp_path / "none.pth", "--teacher", "test_vit"
    )
    assert (code, "does not exist" in err) == (2, True)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((teacher_folder / "student.safetensors").read_bytes()[:-1000])
    code, _, err = run(capsys, "fit", *given, "--teacher", "test_resnet", "--teacher-checkpoint", cut)
    assert (code, "cut short" in err) == (2, True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 2\nlearning_rate: 3\n")
    code, _, err = run(capsys, "fit", "--recipe", recipe)
    assert (code, "learning_rate" in err) == (2, True)
    folder = tmp_path / "file"
    folder.write_text("x")
    code, _, err = run(capsys, "fit", *TINY, "--method", "none", "--out", folder / "run")
    assert (code, "cannot write to" in err) == (2, True)


def test_a_full_disk_is_said_plainly(capsys, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        code, _, err = run(capsys, "fit", *TINY, "--method", "none", "--out", disk / "run")
        assert code == 2
        assert "MiB free" in err
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("name", [path.stem for path in Path(recipe_path("demo")).parent.glob("*.yaml")])
def test_recipes_load(name, tmp_path):
    from crossdistill.cli import _config, _run_parser
    from crossdistill.training.run import teacher_config
    from crossdistill.training.setup import check_names

    config, _ = _config(_run_parser("fit", ""), ["--recipe", name, "--method", "rsd"])
    assert isinstance(config, RunConfig)
    check_names(config)
    check_names(teacher_config(config))
    assert teacher_config(config).student == config.teacher
    from crossdistill.methods import create_method, find_method
    from crossdistill.report.listing import outline

    for method, options in config.options.items():
        find_method(method).Options(**options)
    size = config.img_size
    student = outline(config.student, 100, size, config.model.stem == "small", **config.model.student_args)
    teacher = outline(
        config.teacher,
        100,
        config.model.teacher_img_size or size,
        config.model.stem == "small",
        **config.model.teacher_args,
    )
    create_method("rsd", student.spec, teacher.spec, config.options.get("rsd", {}))


def test_yaml_numbers_and_flags_go_over_a_recipe(tmp_path):
    from crossdistill.cli import _config, _run_parser

    recipe = tmp_path / "mine.yaml"
    recipe.write_text("method: rsd\nepochs: 7\noptim: {lr: 1e-3}\noptions: {rsd: {kappa: 1e-2}}\n")
    config, _ = _config(
        _run_parser("fit", ""), ["--recipe", str(recipe), "--epochs", "9", "--options.rsd.weight", "0.5"]
    )
    assert (config.epochs, config.optim.lr, config.options) == (9, 1e-3, {"rsd": {"kappa": 0.01, "weight": 0.5}})


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "teacher"
    words = [
        "teacher",
        "--teacher",
        "test_resnet",
        "--data",
        "digits",
        "--img-size",
        "32",
        "--epochs",
        "5",
        "--model.stem",
    ]
    words += [
        "native",
        "--loader.batch-size",
        "64",
        "--augment.hflip",
        "0",
        "--engine.accelerator",
        "cpu",
        "--engine.threads",
    ]
    assert main([*words, "1", "--optim.lr", "2e-3", "--out", str(out)]) == 0
    return out


def test_teacher_fit_eval(capsys, tmp_path, teacher_folder):
    out = tmp_path / "run"
    code, shown, progress = run(
        capsys,
        "fit",
        *TINY,
        "--method",
        "rsd",
        "--teacher-checkpoint",
        teacher_folder,
        "--out",
        out,
        "--options.rsd.kappa",
        "0.02",
    )
    assert code == 0
    assert "teacher (test_resnet)" in shown
    assert "report.html" in shown
    assert "on held-out images" in progress
    metrics = json.loads((out / "metrics.json").read_text())
    code, shown, _ = run(capsys, "eval", out, "--json", "--engine.accelerator", "cpu")
    assert code == 0
    scores = json.loads(shown)
    assert scores["top1"] == pytest.approx(metrics["student"]["test"]["top1"], abs=1e-4)
    assert scores["loss"] == pytest.approx(metrics["student"]["test"]["loss"], rel=1e-4)
    code, shown, _ = run(capsys, "eval", out, "--split", "val")
    assert (code, "val (" in shown) == (0, True)
    code, _, err = run(capsys, "eval", out, "--split", "tests")
    assert (code, "did you mean 'test'?" in err) == (2, True)
    # The stored config is a recipe.
    code, _, _ = run(capsys, "fit", "--recipe", out / "config.yaml", "--out", tmp_path / "again")
    assert code == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["student"]["test"] == metrics["student"]["test"]


def test_compare_and_the_same_command_again(capsys, tmp_path, teacher_folder):
    out = tmp_path / "compare"
    words = [
        "compare",
        *TINY,
        "--teacher-checkpoint",
        teacher_folder,
        "--methods",
        "none,rsd",
        "--seeds",
        "0,1",
        "--out",
        out,
    ]
    code, shown, _ = run(capsys, *words)
    assert code == 0
    assert {path.name for path in out.iterdir()} == {"none-s0", "none-s1", "rsd-s0", "rsd-s1", "report.html"}
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 1
    written = (out / "rsd-s1" / "metrics.json").stat().st_mtime_ns
    code, again, progress = run(capsys, *words)
    assert code == 0
    assert again == shown
    assert "epoch" not in progress
    assert (out / "rsd-s1" / "metrics.json").stat().st_mtime_ns == written
    code, _, err = run(capsys, *words, "--epochs", "3")
    assert (code, "epochs is now 3 and was 2" in err) == (2, True)


def test_a_command_that_is_started_again_goes_on(capsys, tmp_path, monkeypatch):
    """As SLURM after a requeue and torchrun after a failure do: the same words, with a count."""
    words = ["fit", *TINY, "--method", "tests.training.stopping:Stopping", "--out", tmp_path / "run"]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("STOP_AT", "2")
    assert run(capsys, *words)[0] == 143
    monkeypatch.delenv("STOP_AT")
    code, _, err = run(capsys, *words)
    assert (code, "already holds a run" in err) == (2, True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(capsys, *words)[0] == 0


def test_two_teachers(capsys, tmp_path, teacher_folder):
    out = tmp_path / "run"
    words = ["fit", *TINY, "--epochs", "1", "--method", "rsd", "--out", out, "--teacher-checkpoint", teacher_folder]
    words += ["--teacher-checkpoint", teacher_folder, "--teacher-weights", "confidence"]
    code, shown, progress = run(capsys, *words)
    assert code == 0
    assert progress.count("on held-out images") == 2
    assert "test_resnet + test_resnet" in shown
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training"]["training_only_parameters"] == 64 * 128 + 2 * 128 + 128 * 2 * 96
    code, _, err = run(capsys, *words, "--teacher", "test_resnet", "--out", tmp_path / "other")
    assert (code, "1 teachers but 2 checkpoints" in err) == (2, True)


def test_variants_of_a_method_are_compared(capsys, tmp_path, teacher_folder):
    from crossdistill.training.compare import split_variants

    assert split_variants("none, hcd{stages=[1,2],parts=2},rsd{}") == ["none", "hcd{stages=[1,2],parts=2}", "rsd{}"]
    out = tmp_path / "compare"
    words = ["compare", *TINY, "--epochs", "1", "--teacher-checkpoint", teacher_folder, "--seeds", "0", "--out", out]
    code, shown, _ = run(
        capsys, *words, "--options.rsd.weight", "0.2", "--methods", "rsd,rsd{kappa=0,decoupler=linear}"
    )
    assert code == 0
    assert "rsd{kappa=0,decoupler=linear}" in shown
    stored = yaml.safe_load((out / "rsd_kappa=0_decoupler=linear-s0" / "config.yaml").read_text())
    assert stored["options"] == {"rsd": {"weight": 0.2, "kappa": 0, "decoupler": "linear"}}
    code, _, err = run(capsys, *words, "--methods", "rsd{kapa=0}")
    assert (code, "did you mean 'kappa'?" in err) == (2, True)
    code, _, err = run(capsys, *words, "--methods", "rsd{kappa}")
    assert (code, "is not option=value" in err) == (2, True)


def test_models_and_methods_are_described(capsys):
    code, shown, _ = run(capsys, "models", "resnet18")
    assert code == 0
    assert all(word in shown for word in ("resnet18", "11.69", "1814", "512", "64 128 256 512", "4 8 16 32"))
    code, shown, _ = run(capsys, "methods")
    assert all(name in shown for name in ("none", "kd", "rsd", "arXiv 2507.21844"))
    code, shown, _ = run(capsys, "methods", "rsd")
    assert "kappa" in shown
    assert "1,312,768 training-only parameters" in shown


def test_print_config_is_yaml(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--recipe", "demo", "--print-config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"] == "digits"
