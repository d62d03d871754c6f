"""The tutorials and the notebook are executed as they stand; only the port is another, so that several can run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(sh|python)(?: title=\"(.+?)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LONGEST_SECONDS = 1800.0


def blocks_of(page: str) -> list[tuple[str, str, str]]:
    """(language, file or nothing, text) of each block of a page that is to be executed, in order."""
    return BLOCK.findall((DOCS / page).read_text())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who has installed cutlayer."""
    programs = tmp_path / "bin"
    programs.mkdir()
    command = programs / "cutlayer"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cutlayer "$@"\n')
    command.chmod(0o755)
    path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**os.environ, "PATH": os.pathsep.join(path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def executed(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Runs a program; returns what it prints. Whatever the program started ends with it."""
    started = time.monotonic()
    process = subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        pytest.fail(f"{arguments[-1]}\ntook more than {LONGEST_SECONDS} s and said:\n{said}")
    assert process.returncode == 0, f"{arguments[-1]}\nended with {process.returncode} and said:\n{said}"
    print(f"{time.monotonic() - started:.0f} s: {arguments[-1].splitlines()[-1]}\n{said}")
    return said


def play(page: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """Executes a page; what each block printed."""
    said = []
    port = str(free_port())
    for language, file, text in blocks_of(page):
        if file:
            (folder / file).write_text(text)
        elif language == "sh":
            said.append(executed(["bash", "-euo", "pipefail", "-c", text.replace("7070", port)], folder, environment))
        else:
            said.append(executed([sys.executable, "-c", text], folder, environment))
    return said


@pytest.mark.slow
def test_the_tutorial_of_a_fleet(tmp_path: Path, shell: dict[str, str]) -> None:
    *_, evaluated, predicted, traced = play("tutorial-fleet.md", tmp_path, shell)
    for run in ("tried", "fleet"):
        assert (tmp_path / "runs" / run / "adapter" / "adapter_model.safetensors").exists()
    assert "accuracy" in evaluated
    assert predicted.splitlines()[-1] in ("billing", "technical")
    assert "wall time" in traced
    refused = json.loads((tmp_path / "runs" / "fleet" / "summary.json").read_text())["refusals"]
    assert not refused.keys() & {"pc-1", "pc-2"}


@pytest.mark.slow
def test_the_tutorial_of_a_method(tmp_path: Path, shell: dict[str, str]) -> None:
    _, compared, read, _, simulated = play("tutorial-method.md", tmp_path, shell)
    assert (tmp_path / "compared" / "report.html").exists()
    assert "memsfl" in compared
    assert read.count("-seed0 ") == 2
    assert 0 <= float(simulated.split()[-2]) <= 1


def test_every_block_of_the_tutorials_is_executed() -> None:
    for page in ("tutorial-fleet.md", "tutorial-method.md"):
        assert len(blocks_of(page)) == (DOCS / page).read_text().count("\n```") / 2
        assert {language for language, _, _ in blocks_of(page)} == {"sh", "python"}


NOTEBOOK = DOCS / "notebooks" / "first-run.ipynb"


def test_the_notebook_holds_no_output() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries of notebooks
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="cutlayer[docs] is not installed")
    nbformat = pytest.importorskip("nbformat", reason="cutlayer[docs] is not installed")
    pytest.importorskip("ipykernel", reason="cutlayer[docs] is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=LONGEST_SECONDS, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs[1])
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs[3])
    assert (tmp_path / "runs" / "first" / "adapter").is_dir()
