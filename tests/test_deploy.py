"""`docs/deploy.md` gets the program onto a machine without the repository, as it is written there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_machine_without_the_repository(tmp_path: Path) -> None:
    """Takes what pip is told of in this environment: a package index, and the CPU build of torch."""
    page = (PROJECT / "docs" / "deploy.md").read_text()
    section = page[page.index("## Getting it onto machines") : page.index("## 1. ")]
    build, install = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    assert build == "make wheel\n"
    here = [f"BIN={Path(sys.executable).parent}", f"DIST={tmp_path}"]
    subprocess.run(["make", "wheel", *here], cwd=PROJECT, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"cutlayer-0.1.0-py3-none-any.whl", "constraints.txt"}
    done = subprocess.run(["bash", "-ec", install], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "cutlayer 0.1.0"
    command = [
        tmp_path / "cutlayer-env" / "bin" / "cutlayer",
        "join",
        "localhost:1",
        "--name",
        "a",
        "--data",
        "none.jsonl",
    ]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (told.returncode, "data none.jsonl" in told.stderr) == (2, True)
