"""`python -m benchmarks.numbers` shows that a change of the code does not change any number.

It trains short seeded runs on the CPU through the command line and compares every logged loss term of every step (as
hexadecimal floats), the test scores and the checksums of the final weights with the values stored in
`benchmarks/results/numbers.json`. `--write` stores new values; do that only where a change is meant to alter them, and
say so in the commit.

The arithmetic is fixed to AVX2 kernels and one thread. The stored values hold for the torch version they were made
with; with another one the script says so and exits with code 77. Processors of another maker add in another order (MKL
has other kernels for them): there, store the values of an earlier commit with `--write --stored FILE`, and compare with
`--stored FILE`.
"""

import os

# Before torch is imported: kernels of the same instruction set on every x86-64 machine, and one thread.
os.environ.update(ATEN_CPU_CAPABILITY="avx2", MKL_CBWR="AVX2", ONEDNN_MAX_CPU_ISA="AVX2", OMP_NUM_THREADS="1")

import argparse
import contextlib
import csv
import hashlib
import io
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from crossdistill.cli import main as crossdistill
from crossdistill.distiller import Distiller

STORED = Path(__file__).parent / "results" / "numbers.json"
NOT_COMPARABLE = 77

_VIT = ["--student", "test_vit", "--model.student-args.patch_size", "8"]
_CNN = ["--student", "test_resnet"]
_DIGITS = ["--data", "digits", "--img-size", "32", "--model.stem", "native", "--augment.hflip", "0"]
_SHORT = ["--epochs", "2", "--loader.batch-size", "64", "--loader.max-train", "192", "--optim.lr", "2e-3"]
_CPU = ["--engine.accelerator", "cpu", "--engine.threads", "1", "--engine.log-every", "1"]
_CPU += ["--engine.channels-last", "false"]
_UNBALANCED = ["--optim.balance", "null"]
COMMON = [*_DIGITS, *_SHORT, *_CPU, *_UNBALANCED, "--trust-teacher", "true"]
CACHED = ["--loader.views", "2", "--cache"]

# Teachers by name; each case trains a student taught by one of them.
TEACHERS = {
    "cnn": ["--teacher", "test_resnet"],
    "vit": ["--teacher", "test_vit", "--model.teacher-args.patch_size", "8"],
}
METHODS: dict[str, list[str]] = {
    "kd": ["--method", "kd", "--options.kd.temperature", "4"],
    "dkd": ["--method", "dkd"],
    "dist": ["--method", "dist", "--options.dist.standardise", "true"],
    "ofa": ["--method", "ofa", "--options.ofa.eps", "1.2"],
    # The published kappa: "auto" is another for the two teachers together, which have 160 dimensions.
    "rsd": ["--method", "rsd", "--options.rsd.kappa", "0.01"],
    "rsd-logits": ["--method", "rsd", "--options.rsd.on", "logits"],
    "rsd-stages": ["--method", "rsd", "--options.rsd.on", "stages"],
    "hcd": ["--method", "hcd", "--options.hcd.target_gradient", "published"],
    "hcd-parts": ["--method", "hcd", "--options.hcd.stages", "[3,4]"],
    "hcd-mean": ["--method", "hcd", "--options.hcd.reduction", "mean"],
    "fbt": ["--method", "fbt"],
    "fbt-symmetric": ["--method", "fbt", "--options.fbt.symmetric", "true", "--options.fbt.detach", "false"],
}


def cases() -> dict[str, tuple[str | None, list[str], int | None]]:
    """List the runs: a name, the teacher, the words of the command, and the step at which it is stopped and resumed."""
    found: dict[str, tuple[str | None, list[str], int | None]] = {}
    for name, words in METHODS.items():
        found[f"{name} vit<-cnn"] = ("cnn", [*_VIT, *words], None)
        found[f"{name} vit<-cnn cached"] = ("cnn", [*_VIT, *words, *CACHED], None)
    for name in ("rsd", "hcd", "fbt", "ofa"):
        found[f"{name} cnn<-vit"] = ("vit", [*_CNN, *METHODS[name]], None)
        found[f"{name} cnn<-vit cached"] = ("vit", [*_CNN, *METHODS[name], *CACHED], None)
    none, rsd = ["--method", "none"], [*_VIT, *METHODS["rsd"]]
    drop = ["--model.student-args.drop_path_rate", "0.2", "--model.student-args.drop_rate", "0.1"]
    strong = ["--augment.auto-augment", "rand-m5", "--augment.erasing", "0.3", "--loader.workers", "1"]
    mixed = ["--augment.mixup", "0.2", "--augment.cutmix", "1.0", "--optim.label-smoothing", "0.1"]
    found |= {
        "none vit": (None, [*_VIT, *none], None),
        "none cnn, sgd": (None, [*_CNN, *none, "--optim.name", "sgd", "--optim.lr", "0.1"], None),
        "none, small stem": (None, ["--student", "test_efficientnet", *none, "--model.stem", "small"], None),
        "rsd, two teachers": ("both", rsd, None),
        "kd, two teachers by confidence": ("both", [*_VIT, *METHODS["kd"], "--teacher-weights", "confidence"], None),
        "rsd, accumulation": ("cnn", [*rsd, "--engine.accumulate", "2"], None),
        "rsd, average": ("cnn", [*rsd, "--optim.ema", "0.9", "--optim.clip-grad", "1"], None),
        "rsd, bf16": ("cnn", [*rsd, "--engine.precision", "bf16"], None),
        "rsd, strong augmentation": ("cnn", [*rsd, *strong, "--augment.hflip", "0.5"], None),
        "rsd, mixing": ("cnn", [*rsd, *mixed], None),
        "rsd, flips and crops": ("cnn", [*rsd, "--augment.hflip", "0.5"], None),
        "rsd, resumed": ("cnn", [*rsd, *drop, "--optim.ema", "0.9"], 4),
        "hcd, cached, resumed": ("cnn", [*_VIT, *METHODS["hcd"], *CACHED], 2),
        "rsd, balanced": ("cnn", [*rsd, "--optim.balance", "1"], None),
        "auto, balanced, resumed": ("cnn", [*_VIT, "--method", "auto", "--optim.balance", "auto", *drop], 4),
    }
    return found


@contextlib.contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Send this process SIGTERM in its `step`-th forward, as a cluster would."""
    forward, seen = Distiller.forward, 0

    def counted(self: Distiller, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == step:
            signal.raise_signal(signal.SIGTERM)
        return forward(self, *args, **kwargs)

    Distiller.forward = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Distiller.forward = forward  # type: ignore[method-assign]


def run(*words: str, code: int = 0) -> None:
    """Run a command quietly."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        got = crossdistill(words)
    if got != code:
        raise SystemExit(f"{' '.join(words)}\nexit code {got}\n{out.getvalue()}{err.getvalue()}")


def losses(folder: Path) -> dict[str, list[str]]:
    """Read every logged loss term and held-out score, as hexadecimal floats, over all attempts of a run."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("logs/*/metrics.csv"), key=lambda path: int(path.parent.name)):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    kept = name.startswith(("train/", "val/")) and "per_second" not in name and "wait" not in name
                    if kept and value:
                        found.setdefault(name, []).append(float(value).hex())
    return {name: found[name] for name in sorted(found)}


def checksum(tensors: dict[str, torch.Tensor]) -> str:
    """Hash tensors whatever their names and order."""
    each = sorted(
        hashlib.sha256(f"{t.dtype}{tuple(t.shape)}".encode() + t.contiguous().numpy().tobytes()).hexdigest()
        for t in tensors.values()
    )
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def measure(folder: Path) -> dict[str, Any]:
    """Read what a finished run has computed."""
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    student = load_file(folder / "student.safetensors")
    metrics = json.loads((folder / "metrics.json").read_text())
    tests = {
        role: {key: float(value).hex() for key, value in sorted(metrics[role]["test"].items())}
        for role in ("student", "teacher")
        if role in metrics
    }
    return {"losses": losses(folder), "last": checksum(last), "student": checksum(student), "test": tests}


def compute(only: str) -> dict[str, Any]:
    """Run all cases whose name contains `only`."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        for name, words in TEACHERS.items():
            run("teacher", *words, *COMMON, "--epochs", "4", "--loader.max-train", "640", "--out", str(root / name))
            found[f"teacher {name}"] = measure(root / name)
        for place, (name, (teacher, words, stop)) in enumerate(cases().items()):
            if only not in name:
                continue
            chosen = [] if teacher is None else ["cnn", "vit"] if teacher == "both" else [teacher]
            folders = [str(root / one) for one in chosen]
            given = (
                ["--teacher-checkpoint", folders[0] if len(folders) == 1 else json.dumps(folders)] if folders else []
            )
            if words[-1] == "--cache":
                words = [*words, str(root / f"cache-{place}")]
            out = str(root / str(place))
            command = ["fit", *COMMON, *given, *words, "--out", out]
            if stop is None:
                run(*command)
            else:
                with stopped_at(stop):
                    run(*command, code=143)
                run("fit", "--out", out, "--resume")
            found[name] = measure(root / str(place))
            print(f"{name}: {found[name]['last']}", flush=True)
    return found


def differences(stored: Any, found: Any, path: str = "") -> Iterator[str]:
    """Name what differs between two nested records."""
    if isinstance(stored, dict) and isinstance(found, dict):
        for key in sorted({*stored, *found}):
            yield from differences(stored.get(key), found.get(key), f"{path} / {key}" if path else key)
    elif stored != found:
        yield f"{path}: was {stored}, is {found}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numbers", description=__doc__)
    parser.add_argument("--write", action="store_true", help="Store the values in place of comparing them.")
    parser.add_argument("--stored", type=Path, default=STORED, help="File of the stored values.")
    parser.add_argument("--only", default="", help="Run the cases whose name contains this.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    made_with = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    if not given.write:
        stored = json.loads(given.stored.read_text())
        if stored["made_with"] != made_with:
            print(f"the stored values were made with {stored['made_with']}, here is {made_with}: not comparable")
            return NOT_COMPARABLE
    found = compute(given.only)
    if given.write:
        given.stored.write_text(json.dumps({"made_with": made_with, "runs": found}, indent=1) + "\n")
        print(f"{len(found)} runs written to {given.stored}")
        return 0
    wanted = {name: value for name, value in stored["runs"].items() if given.only in name or name in found}
    wrong = list(differences(wanted, found))
    print("\n".join(wrong) if wrong else f"equal: {len(found)} runs")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
