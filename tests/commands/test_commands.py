"""The real command line, in this process: what it prints and how it exits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crossdistill.cli import main
from crossdistill.commands import COMMANDS
from crossdistill.report.records import read_run
from tests.commands.running import TINY, run


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom crossdistill.cli import main\n"
        "main(['--help'])\n"
        "from crossdistill.commands import COMMANDS\n"
        "for command in COMMANDS:\n"
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
        (["fit", "--epochs", "0"], "epochs is 0; it must be greater than or equal to 1"),
        (["fit", "--method", "rds"], "unknown method 'rds'; did you mean 'rsd'?"),
        (["fit", "--method", "rsd"], "method 'rsd' needs a teacher"),
        (["fit", "--options.rds.kappa", "1", "--method", "none"], "unknown option --options.rds.kappa; did you mean"),
        (["fit", "--method", "none", "--student", "resnet19"], "unknown model 'resnet19'; did you mean"),
        (["fit", "--method", "none", "--optim.name", "adamww"], "unknown optimiser 'adamww'; did you mean 'adamw'?"),
        (["fit", "--optim.schedule", "cosin"], "optim.schedule is 'cosin'; it must be 'cosine', 'tanh'"),
        (["fit", "--epochs"], "expected one argument"),
        (["fit", "stray"], "unexpected argument 'stray'; options begin with --"),
        (["fit", "--teacher", "a", "--teacher", "b"], "--teacher is given twice; give several as one list"),
        (["fit", "--options.rsd.kapa", "1"], "unknown option --options.rsd.kapa; did you mean --options.rsd.kappa?"),
        (["fit", "--options.rsd.kappa", "-1"], "kappa is -1.0; it must be greater than or equal to 0, or 'auto'"),
        (
            ["fit", "--options.rsd.on", "stage"],
            "method 'rsd': on is 'stage'; it must be 'embedding', 'logits' or 'stages'",
        ),
        (["fit", "--options.hcd.stages", "[2,1]"], "rising numbers from 1 to 4"),
        (["fit", "--loader.max-train", "x"], "loader.max_train is 'x'; it must be a whole number"),
        (["fit", "--method", "none", "--data", "/no/such/folder"], "no such folder"),
        (["fit", "--method", "none", "--optim.lr", "-1"], "optim.lr is -1.0; it must be greater than 0"),
        (["fit", "--recipe", "dmo"], "did you mean 'demo'?"),
        (["fit", "--augment.mixup", "1", "--loader.batch-size", "7"], "loader.batch_size 7 is odd"),
        (["demo", "--seeds", "a,b"], "give whole numbers with commas"),
        (["teacher", "--data", "digits"], "no teacher is named"),
        (["eval", "nothing"], "is not the folder of a run"),
        (["models", "resnet18x"], "unknown model 'resnet18x'; did you mean 'resnet18'?"),
        (["methods", "rds"], "did you mean 'rsd'?"),
        (["methods", "tests.methods.own:NoDefault"], "its option 'weight' has no default"),
        (["models", "os:path"], "'os:path' is of type module"),
        (["fit", "--method", "none", "--student", "os:path"], "'os:path' is of type module; name a class"),
        (["fit", "--method", "none", "--student", "torchvision:resnet18"], "--loader.in-chans 3 converts grey images"),
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
    assert (code, "did you mean --options.rsd.kappa?" in err) == (2, True)
    code, _, err = run(
        capsys, "fit", *given, "--method", "kd", "--teacher-checkpoint", tmp_path / "none.pth", "--teacher", "test_vit"
    )
    assert (code, "does not exist" in err) == (2, True)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((teacher_folder / "student.safetensors").read_bytes()[:-1000])
    code, _, err = run(capsys, "fit", *given, "--teacher", "test_resnet", "--teacher-checkpoint", cut)
    assert (code, "truncated" in err) == (2, True)
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


def parsed(capsys, *words):
    """The settings that a command would use."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words), "--print-config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_yaml_numbers_and_flags_go_over_a_recipe(capsys, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "method: rsd\nepochs: 7\noptim: {lr: 1e-3}\noptions: {rsd: {kappa: 1e-2, weight: 0.3}, kd: {temperature: 4}}\n"
        "model: {student_args: {depth: 3}}\nteacher_training: {epochs: 5}\n"
    )
    flags = ["--epochs", "9", "--options.rsd.kappa", "0.5", "--model.student-args.drop_rate", "0.1"]
    config = parsed(capsys, "fit", "--recipe", recipe, *flags)
    assert (config["epochs"], config["optim"]["lr"]) == (9, 1e-3)
    assert config["options"] == {"rsd": {"kappa": 0.5, "weight": 0.3}, "kd": {"temperature": 4.0}}
    assert config["model"]["student_args"] == {"depth": 3, "drop_rate": 0.1}
    # Wherever the recipe is named, and however an option is spelled.
    again = parsed(capsys, "fit", *[flag.replace("-args", "_args") for flag in flags], f"--recipe={recipe}")
    assert again == config


def test_the_balance_is_a_number_a_word_or_null(capsys):
    for text, value in (("1", 1.0), ("0.5", 0.5), ("auto", "auto"), ("null", None)):
        assert parsed(capsys, "fit", "--optim.balance", text)["optim"]["balance"] == value
    for text in ("0", "-1", "some", ".inf"):
        code, _, err = run(capsys, "fit", "--optim.balance", text)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert "balance is" in err


def test_an_option_that_is_set_back_to_its_default_is_set_back(capsys, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("options: {rsd: {kappa: 0.5, weight: 0.3}}\n")
    flags = ["--options.rsd.kappa", "auto", "--options.rsd.weight", "0.1"]
    assert parsed(capsys, "fit", "--recipe", recipe, *flags)["options"] == {}


def test_options_of_a_method_of_ones_own(capsys):
    config = parsed(capsys, "fit", "--method", "tests.methods.own:Agreement", "--options.Agreement.weight", "2")
    assert config["options"] == {"Agreement": {"weight": 2.0}}


def test_the_teachers_settings_and_flags_over_them(capsys, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("epochs: 7\nteacher: test_resnet\nteacher_training: {epochs: 5, optim.lr: 0.5}\n")
    config = parsed(capsys, "teacher", "--recipe", recipe)
    assert (config["epochs"], config["optim"]["lr"]) == (5, 0.5)
    config = parsed(capsys, "teacher", "--recipe", recipe, "--epochs", "2")
    assert (config["epochs"], config["optim"]["lr"]) == (2, 0.5)


def test_help_shows_what_a_command_reads(capsys):
    shown = {}
    for command in ("fit", "eval", "cache", "teacher", "compare"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown[command] = capsys.readouterr().out
    assert "--optim.lr" in shown["fit"]
    assert "--optim.lr" not in shown["eval"] + shown["cache"]
    assert "--loader.batch-size" in shown["eval"]
    assert "--loader.views" in shown["cache"]
    assert "--loader.views" not in shown["eval"]
    assert "--student " not in shown["teacher"]
    assert "--seeds" in shown["compare"]
    assert "--teacher-training" in shown["teacher"]
    assert not any("--role" in page for page in shown.values())


def test_flags_that_a_command_does_not_read_are_said(capsys, teacher_folder):
    code, _, err = run(capsys, "eval", teacher_folder, "--optim.lr", "3", "--engine.accelerator", "cpu")
    assert code == 0
    assert "note: crossdistill eval does not read --optim.lr" in err


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
    assert (code, "On the val split" in shown) == (0, True)
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
    assert {path.name for path in out.iterdir()} == {
        ".claims",
        ".gitignore",
        "none-s0",
        "none-s1",
        "rsd-s0",
        "rsd-s1",
        "report.html",
        "results.sqlite",
    }
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3
    written = (out / "rsd-s1" / "metrics.json").stat().st_mtime_ns
    code, again, progress = run(capsys, *words)
    assert code == 0
    assert again == shown
    assert "epoch" not in progress
    assert (out / "rsd-s1" / "metrics.json").stat().st_mtime_ns == written
    code, _, err = run(capsys, *words, "--epochs", "3")
    assert (code, "epochs is now 3 and was 2" in err) == (2, True)
    # The page and the table can be made of the runs alone.
    words = ["report", out / "none-s0", out / "rsd-s0", out, "--out", tmp_path / "page", "--format", "markdown"]
    code, table, _ = run(capsys, *words)
    assert code == 0
    *rows, blank, note = table.splitlines()[2:]
    assert [line.split("|")[1].strip() for line in rows] == ["teacher (test_resnet)", "none", "rsd"]
    assert (blank, note.startswith("± is the sample standard deviation")) == ("", True)
    assert [line.split("|")[-2].strip() for line in rows[1:]] == ["2", "2"]
    assert "rsd over none" in (tmp_path / "page" / "report.html").read_text()
    code, _, err = run(capsys, "report", out, teacher_folder, "--out", tmp_path / "more")
    assert (code, f"left out are runs of teachers: {teacher_folder}" in err) == (0, True)
    code, _, err = run(capsys, "report", out, "--out", out / "none-s0")
    assert (code, "which has a page of its own" in err) == (2, True)
    code, _, err = run(capsys, "report", tmp_path / "nothing")
    assert (code, "is not a folder" in err) == (2, True)


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
    words = ["fit", *TINY, "--epochs", "1", "--method", "rsd", "--out", out]
    words += ["--teacher-checkpoint", json.dumps([str(teacher_folder)] * 2), "--teacher-weights", "confidence"]
    code, shown, progress = run(capsys, *words)
    assert code == 0
    assert progress.count("on held-out images") == 2
    assert "test_resnet + test_resnet" in shown
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training"]["training_only_parameters"] == 64 * 128 + 2 * 128 + 128 * 2 * 96
    code, _, err = run(capsys, *words, "--teacher", "test_resnet", "--out", tmp_path / "other")
    assert (code, "1 teachers but 2 checkpoints" in err) == (2, True)
    names = ["--teacher", "[test_resnet, test_resnet]", "--out", tmp_path / "third"]
    code, _, err = run(capsys, "fit", *TINY, "--method", "kd", *names)
    assert (code, "the accuracy of teacher 1 (test_resnet) is" in err) == (2, True), err


def test_variants_of_a_method_are_compared(capsys, tmp_path, teacher_folder):
    from crossdistill.commands.compare import split_variants

    assert split_variants("none, hcd{stages=[1,2],parts=2},rsd{}") == ["none", "hcd{stages=[1,2],parts=2}", "rsd{}"]
    out = tmp_path / "compare"
    words = ["compare", *TINY, "--epochs", "1", "--teacher-checkpoint", teacher_folder, "--seeds", "0", "--out", out]
    code, shown, _ = run(
        capsys, *words, "--options.rsd.weight", "0.2", "--methods", "rsd,rsd{kappa=0,decoupler=linear}"
    )
    assert code == 0
    assert "rsd{kappa=0,decoupler=linear}" in shown
    stored = yaml.safe_load((out / "rsd_kappa=0_decoupler=linear-s0" / "config.yaml").read_text())
    kept = stored["options"]["rsd"]
    assert (kept["weight"], kept["kappa"], kept["decoupler"]) == (0.2, 0, "linear")
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
    code, shown, _ = run(capsys, "methods", "rsd+kd")
    assert code == 0
    assert all(word in shown for word in ("kappa", "temperature", "1,312,768 training-only parameters"))
    assert "negatives" in run(capsys, "methods", "crd")[1]
    code, shown, _ = run(capsys, "methods", "tests.methods.own:Bare")
    assert (code, "tests.methods.own:Bare: -" in shown) == (0, True)


def test_a_teacher_without_a_head_teaches(capsys, tmp_path):
    """Live and from the cache: rsd reads embeddings alone, and the report says nothing of an accuracy."""
    words = ["fit", *TINY, "--epochs", "1", "--teacher", "test_resnet", "--model.teacher-classes", "0"]
    words += ["--trust-teacher", "true"]  # its weights are random
    for cache in ("off", tmp_path / "cache"):
        out = tmp_path / f"run-{Path(cache).name}"
        code, shown, progress = run(capsys, *words, "--method", "rsd", "--cache", cache, "--out", out)
        assert code == 0
        assert "teacher test_resnet: its accuracy is not known" in progress
        assert "teacher (" not in shown
        metrics = json.loads((out / "metrics.json").read_text())
        assert "test" not in metrics["teacher"]
        assert "taught by test_resnet" in (out / "report.html").read_text()
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["format"]["classes"] == 0
    code, _, err = run(capsys, *words, "--method", "kd", "--out", tmp_path / "kd")
    assert code == 2
    assert "method 'kd' reads the teacher's logits, but 'test_resnet' has no classifier and the student has 10" in err
    assert "(auto, fitnet, cc, rkd, crd, rsd, fbt with ofa=false), or first train the teacher on the classes" in err


def test_a_teacher_is_called_a_teacher(capsys, tmp_path):
    out = tmp_path / "teacher"
    code, shown, progress = run(capsys, "teacher", "--teacher", "test_resnet", *TINY[2:], "--out", out)
    assert code == 0
    assert "teacher (test_resnet)" in shown
    assert "student" not in shown
    assert "teacher: test_resnet (0.37 M) on digits" in progress
    assert "teacher test_resnet s0  epoch 2/2" in progress
    assert "note: crossdistill teacher does not read --model.student-args" in progress
    page = (out / "report.html").read_text()
    assert "teacher (test_resnet)" in page
    assert "student: <span" not in page


OWN = """
from pydantic.dataclasses import dataclass
from crossdistill import Method, Needs, Reads


@dataclass(frozen=True)
class GapOptions:
    weight: float = 1.0


class Gap(Method):
    Options = GapOptions
    idea = "Equal mean logits."
    paper = "-"
    needs = Needs(student=Reads(logits=True), teacher=Reads(logits=True))

    def __init__(self, options, student, teacher):
        super().__init__(options, student, teacher)
        self.weights = {"gap": options.weight}

    def forward(self, student, teacher, targets):
        return {"gap": (student.logits.mean(1) - teacher.logits.mean(1)).square().mean()}
"""


def test_a_method_is_one_file_and_one_line(capsys, tmp_path, monkeypatch, teacher_folder):
    (tmp_path / "gap.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    from gap import Gap

    from crossdistill.methods import METHODS

    monkeypatch.setitem(METHODS, "gap", Gap)
    words = ["fit", *TINY, "--epochs", "1", "--method", "gap", "--teacher-checkpoint", teacher_folder]
    code, _, _ = run(capsys, *words, "--options.gap.weight", "0.5", "--out", tmp_path / "run")
    assert code == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["options"] == {"gap": {"weight": 0.5}}
    assert "train/gap" in (tmp_path / "run" / "logs" / "0" / "metrics.csv").read_text()
    assert "gap" in run(capsys, "methods")[1]
    # And with no line at all, by its path.
    words[words.index("gap")] = "gap:Gap"
    assert run(capsys, *words, "--options.Gap.weight", "0.5", "--out", tmp_path / "again")[0] == 0


def test_a_moved_comparison_goes_on(capsys, tmp_path):
    words = ["compare", *TINY, "--epochs", "1", "--teacher", "test_resnet", "--trust-teacher", "true", "--seeds", "0"]
    assert run(capsys, *words, "--methods", "kd", "--out", tmp_path / "here")[0] == 0
    (tmp_path / "here").rename(tmp_path / "there")
    written = (tmp_path / "there" / "kd-s0" / "metrics.json").stat().st_mtime_ns
    code, shown, _ = run(capsys, *words, "--methods", "kd,none", "--out", tmp_path / "there")
    assert code == 0
    assert (tmp_path / "there" / "kd-s0" / "metrics.json").stat().st_mtime_ns == written
    assert {"kd", "none"} <= {line.split()[0] for line in shown.splitlines() if line.split()}


def test_a_damaged_finished_run_is_named(capsys, tmp_path):
    words = ["compare", *TINY, "--epochs", "1", "--methods", "none", "--seeds", "0", "--out", tmp_path / "out"]
    assert run(capsys, *words)[0] == 0
    folder = tmp_path / "out" / "none-s0"
    metrics = json.loads((folder / "metrics.json").read_text())
    settings = (folder / "config.yaml").read_text()
    damage = {
        "metrics.json": ("", "{", "[]", "{}", json.dumps({**metrics, "student": {"test": {}}})),
        "config.yaml": (
            "",
            "[",
            "3",
            "epochs: 1",
            settings.replace("seed: 0\n", ""),
            settings.replace("  lr:", "  lrr:"),
        ),
        "environment.json": ("", "{}", None),
        "samples.json": ("", "{}", "[3]", None),
        "logs/0/metrics.csv": ("epoch,val/top1\n0,3.0\n", "step\nx\n"),
    }
    for name, texts in damage.items():
        whole = (folder / name).read_bytes()
        for text in texts:
            if text is None:
                (folder / name).unlink()
            else:
                (folder / name).write_text(text)
            code, _, err = run(capsys, *words)
            refused = [line for line in err.strip().splitlines() if not line.startswith(("data ", "note: "))]
            assert (code, len(refused)) == (2, 1), (name, text, err)
            assert Path(name).name in err
        (folder / name).write_bytes(whole)
    assert run(capsys, *words)[0] == 0


def test_numbers_are_never_cut(tmp_path, teacher_folder):
    """Into a pipe, beside a narrow terminal: the whole heading and every number."""
    command = [sys.executable, "-m", "crossdistill", "eval", str(teacher_folder), "--engine.accelerator", "cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "40"})
    assert "calibration error, %" in shown.stdout
    assert "top-1, %" in shown.stdout
    assert "…" not in shown.stdout


def test_nothing_that_a_command_writes_is_committed(capsys, tmp_path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    words = [*TINY, "--epochs", "1", "--teacher", "test_resnet", "--trust-teacher", "true"]
    words += ["--cache", tmp_path / "cache", "--methods", "kd", "--seeds", "0"]
    assert run(capsys, "compare", *words, "--out", tmp_path / "out")[0] == 0
    assert run(capsys, "fit", *TINY, "--epochs", "1", "--method", "none", "--out", tmp_path / "run")[0] == 0
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not status.stdout
    assert (tmp_path / "cache" / "cache.json").exists()


def test_a_teacher_of_other_classes(capsys, tmp_path):
    """Its embedding teaches, live and from the cache; its logits do not; its body can be trained on."""
    from safetensors.torch import save_file

    from crossdistill import create_backbone

    weights = tmp_path / "seven.safetensors"
    save_file(dict(create_backbone("test_resnet", 7, 32, in_chans=1).model.state_dict()), weights)
    given = ["--teacher", "test_resnet", "--teacher-checkpoint", weights]
    for cache in ("off", tmp_path / "cache"):
        out = tmp_path / f"run-{Path(cache).name}"
        words = ["fit", *TINY, *given, "--epochs", "1", "--method", "rsd", "--cache", cache, "--out", out]
        code, shown, progress = run(capsys, *words)
        assert code == 0
        assert "its accuracy is not known: its 7 classes are not those of the data" in progress
        assert "its weights are a file, which states neither stem nor input size: native stem, 32 px" in progress
        assert "its input has mean (0.5) and std (0.5), those of the name 'test_resnet'" in progress
        assert "teacher (" not in shown
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["format"]["classes"] == 0
    code, _, err = run(capsys, "fit", *TINY, *given, "--method", "kd", "--out", tmp_path / "kd")
    assert code == 2
    assert "method 'kd' reads the teacher's logits, but 'test_resnet' has 7 classes and the student has 10" in err
    train = ["teacher", *TINY[2:], *given, "--epochs", "1", "--out", tmp_path / "teacher"]
    code, _, err = run(capsys, *train)
    assert code == 2
    assert "all but the classifier fits: new_head=True trains a new one (--model.new-head true" in err
    assert run(capsys, *train, "--model.new-head", "true")[0] == 0
    code, shown, _ = run(
        capsys, "fit", *TINY, "--epochs", "1", "--method", "kd", "--trust-teacher", "true",
        "--teacher-checkpoint", tmp_path / "teacher", "--out", tmp_path / "kd",
    )  # fmt: skip
    assert (code, "teacher (test_resnet)" in shown) == (0, True)


def test_a_probed_teacher_and_the_scores_of_embeddings(capsys, tmp_path, teacher_folder):
    """A body without a classifier gets one in a single pass, and every method works with it."""
    from safetensors.torch import save_file

    from crossdistill import create_backbone, load_backbone

    body = create_backbone("test_resnet", 0, 32, in_chans=1)
    trained = load_backbone(teacher_folder).model.state_dict()
    body.model.load_state_dict({name: trained[name] for name in body.model.state_dict()})
    weights = tmp_path / "body.safetensors"
    save_file(dict(body.model.state_dict()), weights)
    common = ["--data", "digits", "--img-size", "32", "--model.stem", "native", "--augment.hflip", "0"]
    common += ["--engine.accelerator", "cpu", "--engine.threads", "1"]
    given = ["--teacher", "test_resnet", "--teacher-checkpoint", weights, "--out", tmp_path / "probed"]
    code, shown, progress = run(capsys, "teacher", "--probe", *common, *given, "--loader.views", "1")
    assert code == 0
    assert "on the validation split" in progress
    metrics = json.loads((tmp_path / "probed" / "metrics.json").read_text())
    # Its probabilities are as sure as they are right; a strong regularisation can be right and almost uniform.
    assert metrics["student"]["test"]["ece"] < 10
    fine_tuned = json.loads((teacher_folder / "metrics.json").read_text())
    assert metrics["student"]["test"]["top1"] > fine_tuned["student"]["test"]["top1"] - 3
    kept = load_backbone(tmp_path / "probed").model.state_dict()
    assert all(torch_equal(kept[name], value) for name, value in body.model.state_dict().items())
    words = ["fit", *TINY, "--epochs", "1", "--method", "kd", "--teacher-checkpoint", tmp_path / "probed"]
    code, shown, _ = run(capsys, *words, "--out", tmp_path / "kd")
    assert (code, "teacher (test_resnet)" in shown) == (0, True)
    code, shown, _ = run(capsys, "eval", teacher_folder, "--knn", "--linear-probe", "--json")
    scores = json.loads(shown)
    assert code == 0
    assert min(scores["knn"], scores["linear_probe"], scores["top1"]) > 85
    code, shown, _ = run(capsys, "eval", "test_resnet", "--checkpoint", weights, *common, "--knn")
    assert (code, "nearest neighbours, %" in shown, "top-1" in shown) == (0, True, False)
    code, _, err = run(capsys, "eval", "test_resnet", "--checkpoint", weights, *common)
    assert (code, "the model has 0 classes" in err) == (2, True)
    code, _, err = run(capsys, "eval", teacher_folder, "--linear-probe", "--split", "val")
    assert (code, "cannot score it" in err) == (2, True)


def torch_equal(one, other):
    import torch

    return torch.equal(one, other)


def test_images_without_labels(capsys, tmp_path, teacher_folder):
    """An embedding is learned, live and from the cache; then its body is trained with labels."""
    words = ["fit", *TINY, "--epochs", "8", "--loader.max-train", "640", "--loader.labels", "none"]
    words += ["--teacher-checkpoint", teacher_folder]
    losses = {}
    for cache in ("off", tmp_path / "cache"):
        out = tmp_path / f"run-{Path(cache).name}"
        given = ["--method", "rsd", "--cache", cache, "--loader.views", "2", "--out", out]
        code, shown, progress = run(capsys, *words, *given)
        assert code == 0, progress
        assert "On the validation split, without labels" in shown
        assert "distill_loss" in progress
        exported = json.loads((out / "config.json").read_text())
        assert (exported["num_classes"], exported.get("label_names")) == (0, None)
        metrics = json.loads((out / "metrics.json").read_text())
        assert "test" not in metrics["student"]
        rows = (out / "logs" / "0" / "metrics.csv").read_text()
        assert "val/distill_loss" in rows
        assert "val/top1" not in rows
        losses[Path(cache).name] = float(shown.split("student (test_vit)")[1].split()[0])
    assert losses["cache"] == pytest.approx(losses["off"], rel=2e-2)
    code, shown, _ = run(capsys, "eval", tmp_path / "run-off", "--loader.labels", "classes", "--knn", "--json")
    assert code == 0
    assert json.loads(shown)["knn"] > 60
    words = ["fit", *TINY, "--epochs", "1", "--method", "none", "--model.student-checkpoint", tmp_path / "run-off"]
    assert run(capsys, *words, "--model.new-head", "true", "--out", tmp_path / "tuned")[0] == 0
    import timm

    assert timm.create_model(f"local-dir:{tmp_path / 'run-off'}", pretrained=True).num_classes == 0


def test_without_labels_the_student_may_learn_the_teachers_classes(capsys, tmp_path, teacher_folder):
    words = ["fit", *TINY, "--epochs", "10", "--loader.max-train", "640", "--loader.labels", "none"]
    words += ["--teacher-checkpoint", teacher_folder]
    assert run(capsys, *words, "--method", "auto", "--out", tmp_path / "run")[0] == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["label_names"] == [str(d) for d in range(10)]
    code, shown, _ = run(capsys, "eval", tmp_path / "run", "--loader.labels", "classes", "--json")
    assert code == 0
    assert json.loads(shown)["top1"] > 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--method", "none"],
            "method 'none' learns from labels, but loader.labels is 'none': use a method that reads",
        ),
        (["--method", "ofa"], "(auto, kd, dist, fitnet, cc, rkd, rsd, fbt with ofa=false)"),
        (["--method", "rsd", "--optim.ema", "0.9"], "optim.ema cannot be used with loader.labels 'none'"),
        (["--method", "rsd", "--optim.balance", "1"], "a number for optim.balance cannot be used with loader.labels"),
        (["--method", "rsd"], "teacher 'test_resnet' has random weights, so it has nothing to teach"),
        (["--method", "rsd", "--model.teacher-classes", "0"], "teacher 'test_resnet' has random weights"),
        (["--method", "rsd", "--augment.mixup", "0.2"], "mixup and CutMix cannot be used with loader.labels 'none'"),
    ],
)
def test_what_needs_labels_is_refused(capsys, tmp_path, words, message):
    given = ["fit", *TINY, "--loader.labels", "none", "--teacher", "test_resnet", "--out", tmp_path / "run"]
    code, _, err = run(capsys, *given, *words)
    assert (code, message in err) == (2, True), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise OSError('no licence')", "cannot be imported (OSError: no licence)"),
        ("class Own(Method): pass", "has no forward(student, teacher, targets)"),
        (
            "class Own(Method):\n    def forward(self, s, t, y): return {}\n    def __init__(self, o, s, t): 1 / 0",
            "cannot be built (ZeroDivisionError: division by zero)",
        ),
    ],
    ids=["import", "forward", "constructor"],
)
def test_a_method_of_ones_own_that_fails(capsys, tmp_path, monkeypatch, request, body, message):
    module = f"own_{request.node.callspec.id}"
    (tmp_path / f"{module}.py").write_text(f"from crossdistill import Method\n{body}\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, _, err = run(capsys, "fit", *TINY, "--method", f"{module}:Own", "--out", tmp_path / "run")
    assert (code, message in err, len(err.strip().splitlines()[-1:])) == (2, True, 1), err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--method", "rsd", "--model.teacher-classes", "0"], "teacher 'test_vit' has random weights"),
        (["cache", "--method", "rsd", "--model.teacher-classes", "0"], "teacher 'test_vit' has random weights"),
        (["teacher", "--probe"], "teacher 'test_vit' has random weights, so it has nothing to teach"),
        (["fit", "--method", "auto+kd"], "'auto' is a sum itself; name its parts, as in 'rsd+kd+fitnet'"),
        (["fit", "--method", "rsd+rsd"], "method 'rsd+rsd' names 'rsd' twice"),
        (["fit", "--method", "rsd+"], "the name of a method is empty; a sum is written as 'rsd+kd'"),
        (["fit", "--method", "none+kd"], "'none' is no part of a sum; leave it out"),
        (["fit", "--method", "rsd{kappa=0}"], "options in braces are for lists of methods (`compare --methods`)"),
        (["fit", "--method", "none", "--model.new-head", "true"], "but there is none: give --model.student-checkpoint"),
        (["teacher", "--model.new-head", "true"], "but there is none: give --teacher-checkpoint"),
        (["fit", "--method", "rsd", "--options.rsd.kappa", "true"], "kappa is True; it must be a number or 'auto'"),
        (["fit", "--method", "rsd", "--optim.balance", "true"], "balance is True; it must be a number or 'auto'"),
    ],
)
def test_what_would_teach_nothing_or_something_else_is_refused(capsys, tmp_path, words, message):
    out = "--cache" if words[0] == "cache" else "--out"
    given = [*words, *TINY, "--loader.max-train", "64", "--teacher", "test_vit", out, tmp_path / "run"]
    code, _, err = run(capsys, *given)
    assert (code, message in err) == (2, True), err
    assert not (tmp_path / "run").exists()


def test_options_of_a_method_that_is_not_used_are_named(capsys, tmp_path):
    words = ["fit", *TINY, "--loader.max-train", "64", "--epochs", "1", "--method", "none", "--out", tmp_path / "run"]
    _, _, err = run(capsys, *words, "--options.rsd.kappa", "0.1")
    assert "note: --options.rsd.kappa has no effect: method rsd is not used" in err
    words = [*words[:-1], tmp_path / "auto", "--teacher", "test_vit", "--trust-teacher", "true", "--method", "auto"]
    _, _, err = run(capsys, *words, "--options.kd.temperature", "4")
    assert "auto uses the defaults of its methods; --method rsd+kd has their options" in err


def test_the_table_has_the_loss_of_the_student_that_is_kept(capsys, tmp_path, teacher_folder):
    """With labelled images beside, that is the epoch of the best nearest neighbours."""
    words = ["fit", *TINY, "--epochs", "3", "--loader.max-train", "320", "--loader.labels", "none", "--method", "rsd"]
    words += ["--teacher-checkpoint", teacher_folder, "--probe-data", "digits", "--out", tmp_path / "run"]
    code, shown, _ = run(capsys, *words)
    assert code == 0
    curves = read_run(tmp_path / "run").curves
    knn, losses = dict(curves["val/knn"]), dict(curves["val/distill_loss"])
    kept = max(knn, key=lambda epoch: knn[epoch])
    assert f"{losses[kept]:.4f}" in shown


def test_what_a_run_does_not_use_is_said(capsys, tmp_path, teacher_folder):
    """Images beside the whole batches, the recipe's options of auto's methods, all but one class of a mixed image."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("options: {kd: {temperature: 4.0}}")
    words = ["fit", *TINY, "--epochs", "1", "--teacher-checkpoint", teacher_folder, "--loader.max-train", "100"]
    code, _, err = run(capsys, *words, "--recipe", recipe, "--method", "auto", "--out", tmp_path / "auto")
    assert code == 0, err
    assert "auto uses the defaults of its methods, not the recipe's options of kd" in err
    assert "training batches are whole (64 images), so an epoch leaves out 36 of the 100 training images" in err
    assert "mixed image" not in err
    words += ["--loader.batch-size", "50", "--augment.mixup", "0.8"]
    code, _, err = run(capsys, *words, "--recipe", recipe, "--method", "dkd", "--out", tmp_path / "dkd")
    assert code == 0, err
    assert "dkd reads one class of a mixed image, the one with the larger share" in err
    assert "auto uses" not in err
    assert "batches are whole" not in err
