"""What can be told without torch is told without it: nobody waits seconds of imports to hear of a word misspelt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from cutlayer.cli import main; main(sys.argv[1:])"
WRONG: dict[str, tuple[list[str], str]] = {
    "a flag": (["train", "--rouds", "3"], "rounds"),
    "a command": (["trian"], "train"),
    "a value": (["train", "--rounds", "many"], "train.rounds"),
    "a codec": (["train", "--compress-activations", "int9"], "int8"),
    "a key": (["train", "-o", "train.ruonds=3"], "Did you mean 'rounds'?"),
    "a method": (["train", "--method", "SplitLora"], "Did you mean 'splitlora'?"),
    "an option of it": (["up", "-o", "method.ordr=fifo"], "Did you mean 'order'?"),
    "a fleet": (["serve", "--fleet", "memsfl-sx"], "Did you mean 'memsfl-six'?"),
    "a fleet file": (["train", "--fleet", "none.yaml"], "none.yaml"),
    "a run file": (["train", "none.yaml"], "none.yaml: expected a run file"),
    "data": (["train", "--data", "none.jsonl"], "data none.jsonl: expected a folder or a file"),
    "a run that is not there": (["train", "--resume", "none"], "expected a run folder"),
    "an open door": (["serve", "--host", "0.0.0.0"], "expected TLS and devices that prove who they are"),
    "a roster": (["serve", "--roster", "none"], "none"),
    "an address": (["join", "host", "--data", "builtin:reviews", "--name", "a"], "expected HOST:PORT"),
    "a token": (["join", "localhost:1", "--data", "x.jsonl", "--name", "a", "--token", "none"], "none"),
    "an authority": (["join", "h:1", "--data", "builtin:reviews", "--name", "a", "--ca", "none"], "none"),
    "a device's data": (["join", "localhost:1", "--data", "none.jsonl", "--name", "a"], "none.jsonl"),
}


@pytest.mark.parametrize(("words", "said"), WRONG.values(), ids=WRONG)
def test_it_is_told_before_torch_is_imported(words: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_brackets(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "serve", "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert "cutlayer[ray]" in " ".join(done.stdout.split()).replace("│ │ ", "").replace("\n", "")
