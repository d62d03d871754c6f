"""A stranger's package: one method and one shape, installed by pip beside cutlayer and run by name."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from cutlayer.testing.tiny import reviews, save_tiny_model, save_tiny_tokenizer, write_jsonl

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "examples" / "my-method"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has what this one has, and the package."""
    pytest.importorskip("setuptools", reason="the package is built by setuptools")
    folder = tmp_path_factory.mktemp("scratch")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    here = (sysconfig.get_path("purelib"), str(PROJECT / "src"))
    (Path(site) / "beside.pth").write_text("\n".join(here) + "\n")
    source = folder / "my-method"
    subprocess.run(["cp", "-r", PACKAGE, source], check=True)  # a build writes beside its sources
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", source], check=True)
    return python


def trained(python: Path, folder: Path, *words: str, command: str = "train") -> dict[str, object]:
    """The last round's line of a run of three devices, and the adapter's bytes."""
    model = save_tiny_tokenizer(save_tiny_model("bert", "classification", folder / "model"))
    write_jsonl(folder / "data" / "train.jsonl", reviews(30, seed=1))
    write_jsonl(folder / "data" / "validation.jsonl", reviews(9, seed=2))
    (folder / "fleet.yaml").write_text(
        "source: made up\nserver: {tflops: 0.03, efficiency: 1.0, memory_gib: 16}\n"
        "defaults: {efficiency: 1.0, memory_gib: 1, up_mbit: 8, down_mbit: 8, latency_ms: 1}\n"
        "devices: [{name: a, tflops: 0.001}, {name: b, tflops: 0.002}, {name: c, tflops: 0.003}]\n"
    )
    size = ["--rounds", "2", "--local-steps", "2", "--batch-size", "4", "--max-length", "16", "--lr", "0.01"]
    out = folder / "-".join(("run", command, *(word.strip("-").replace("=", "_") for word in words)))
    where = ["--model", str(model), "--data", str(folder / "data"), "--fleet", str(folder / "fleet.yaml")]
    columns = ["--task", "classification", "--text", "text", "--label", "label", "--out", str(out)]
    done = subprocess.run(
        [python, "-m", "cutlayer", command, *where, *columns, *size, *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {"row": row, "adapter": (out / "adapter" / "adapter_model.safetensors").read_bytes()}


@pytest.mark.slow
def test_a_strangers_method_is_run_by_name(scratch: Path, tmp_path: Path) -> None:
    """mu = 0 is federated averaging, bit for bit, another mu is not; real processes find the shape too."""
    plain = trained(scratch, tmp_path, "--method", "fedlora")
    free = trained(scratch, tmp_path, "--method", "fedprox", "-o", "method.mu=0.0")
    held = trained(scratch, tmp_path, "--method", "fedprox", "-o", "method.mu=0.5")
    real = trained(scratch, tmp_path, "--method", "fedprox", "-o", "method.mu=0.5", command="up")
    assert free["adapter"] == plain["adapter"]
    assert held["adapter"] != plain["adapter"]
    assert real["adapter"] == held["adapter"]


@pytest.mark.slow
def test_it_is_listed_and_keeps_the_laws(scratch: Path) -> None:
    """By `Neutral: mu=0.0` one device is held to ordinary training, too."""
    listed = subprocess.run([scratch, "-m", "cutlayer", "methods"], capture_output=True, text=True, check=True)
    [line] = [line for line in listed.stdout.splitlines() if line.startswith(" fedprox ")]
    assert "mu=0.01" in line
    checked = subprocess.run([scratch, "-m", "cutlayer", "check", "fedprox"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert "holds           One device, nothing compressed" in checked.stdout
