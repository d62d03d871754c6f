"""Answers that need no torch are given without it: nobody waits seconds of imports to hear of a word misspelt.

One process in which torch cannot be imported is given every command line of the tables, one after the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer.main

from cutlayer.cli.app import app

WITHOUT_TORCH = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
sys.modules["torch"] = None
from cutlayer.cli import main
for words in json.loads(sys.stdin.read()):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code
        except Exception as error:
            err.write(f"Traceback: {type(error).__name__}: {error}")
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
DEVICE = ["--data", "builtin:reviews", "--name", "a"]
WRONG: dict[str, tuple[list[str], str]] = {
    "a command": (["trian"], "train"),
    "a flag": (["train", "--rouds", "3"], "rounds"),
    "a value": (["train", "--rounds", "many"], "train.rounds"),
    "a codec": (["train", "--compress-activations", "int9"], "int8"),
    "a key": (["train", "-o", "train.ruonds=3"], "Did you mean 'rounds'?"),
    "a method": (["train", "--method", "SplitLora"], "Did you mean 'splitlora'?"),
    "a fleet file": (["train", "--fleet", "none.yaml"], "none.yaml"),
    "a run file": (["train", "none.yaml"], "none.yaml: expected a run file"),
    "data": (["train", "--data", "none.jsonl"], "data none.jsonl: expected a folder or a file"),
    "a model": (["train", "--model", "./none"], "model: expected a folder with config.json"),
    "hardware": (["train", "--hardware", "gpu"], "hardware: expected cpu, cuda or cuda:N"),
    "a page's address": (["train", "--page=nowhere"], "--page: expected HOST:PORT"),
    "a page for others": (["up", "--page", "0.0.0.0:7072"], "--page: expected TLS where others can connect"),
    "a page's certificate": (["serve", "--page=0.0.0.0:1", "--page-tls", "."], "server.crt and server.key"),
    "a run that is not there": (["train", "--resume", "none"], "expected a run folder"),
    "an option of a method": (["up", "-o", "method.ordr=fifo"], "Did you mean 'order'?"),
    "up: a model": (["up", "--model", "none.gguf"], "model: expected a folder with config.json"),
    "a fleet": (["serve", "--fleet", "memsfl-sx"], "Did you mean 'memsfl-six'?"),
    "an open door": (["serve", "--host", "0.0.0.0"], "expected TLS and devices that prove who they are"),
    "a roster": (["serve", "--roster", "none"], "none"),
    "a span": (["serve", "--span", "four"], "--span"),
    "a site without a name": (["serve", "--site-of", "localhost:1"], "--name"),
    "a site's server": (["serve", "--site-of", "host", "--name", "s"], "expected HOST:PORT"),
    "a site's token": (["serve", "--site-of", "localhost:1", "--name", "s", "--token", "none"], "none"),
    "an address": (["join", "host", *DEVICE], "expected HOST:PORT"),
    "a token": (["join", "localhost:1", "--data", "x.jsonl", "--name", "a", "--token", "none"], "none"),
    "an authority": (["join", "h:1", *DEVICE, "--ca", "none"], "none"),
    "a device's data": (["join", "localhost:1", "--data", "none.jsonl", "--name", "a"], "none.jsonl"),
    "a device's model": (["join", "localhost:1", *DEVICE, "--model", "./none"], "model: expected a folder"),
    "a device's hardware": (["join", "localhost:1", *DEVICE, "--hardware", "gpu"], "hardware: expected cpu"),
    "a device's limit": (["join", "localhost:1", *DEVICE, "--never", "label"], "never: expected some of labels"),
    "a device's time": (["join", "localhost:1", *DEVICE, "--until", "tonight"], "until: expected"),
    "plan: a method": (["plan", "--method", "memsfll"], "Did you mean 'memsfl'?"),
    "plan: a model": (["plan", "--model", "./none"], "model: expected a folder with config.json"),
    "recommend: a fleet": (["recommend", "--fleet", "none"], "fleet: expected one of"),
    "show-data: data": (["show-data", "--data", "none.csv"], "data none.csv: expected a folder or a file"),
    "compare: a method": (["compare", "memsfll"], "Did you mean 'memsfl'?"),
    "compare: an option": (["compare", "memsfl:ordr=fifo"], "Did you mean 'order'?"),
    "compare: a metric": (["compare", "memsfl", "--metric", "acuracy"], "metric: expected"),
    "compare: jobs": (["compare", "memsfl", "--jobs", "0"], "--jobs"),
    "compare: a fleet": (["compare", "memsfl", "--fleet", "none"], "fleet: expected one of"),
    "status": (["status", "none"], "expected a run folder"),
    "report": (["report", "none"], "expected a run folder"),
    "trace": (["trace", "none"], "expected a run folder"),
    "evaluate": (["evaluate", "none", "--data", "builtin:reviews"], "adapter none: expected a folder"),
    "evaluate: a dtype": (["evaluate", "none", "--data", "x", "--dtype", "fp8"], "--dtype: expected one of fp32"),
    "evaluate: a split": (["evaluate", "none", "--data", "x", "--split", "dev"], "--split: expected train"),
    "evaluate: data": (["evaluate", "adapter", "--data", "none.csv"], "data none.csv: expected a folder or a file"),
    "evaluate: a base": (["evaluate", "adapter", "--data", "x", "--model", "./none"], "model: expected a folder"),
    "evaluate: a lost base": (["evaluate", "orphan", "--data", "x"], "Name it with --model"),
    "generate": (["generate", "none", "--prompt", "hello"], "adapter none: expected a folder"),
    "generate: neither": (["generate", "none"], "--prompt and --chat"),
    "generate: no language model": (["generate", "adapter", "--chat"], "which writes no text"),
    "generate: no round yet": (["generate", "run", "--prompt", "hello"], "at least one round that is over"),
    "export": (["export", "none", "--out", "there", "--merged"], "adapter none: expected a folder"),
    "export: neither": (["export", "adapter", "--out", "there"], "--merged and --adapter"),
    "export: a dtype": (["export", "adapter", "--out", "there", "--merged", "--dtype", "int8"], "--dtype: expected"),
    "export: a hub's name": (["export", "adapter", "--out", "there", "--merged", "--push", "mine"], "OWNER/NAME"),
    "export: a folder that is taken": (["export", "adapter", "--out", ".", "--merged"], "--out: expected a folder"),
    "export: a round": (["export", "run", "--out", "there", "--merged", "--round", "3"], "expected adapters/round-3"),
    "check": (["check", "splitlra"], "Did you mean 'splitlora'?"),
    "check: an option": (["check", "memsfl", "-o", "ordr=fifo"], "Did you mean 'order'?"),
    "methods": (["methods", "splitlra"], "Did you mean 'splitlora'?"),
    "fleet init": (["fleet", "init", "new", "--host", "a b"], "a b"),
    "fleet renew": (["fleet", "renew", "--fleet", "none", "--host", "localhost"], "none"),
    "fleet add": (["fleet", "add", "a", "--fleet", "none"], "expected a roster"),
    "fleet revoke": (["fleet", "revoke", "a", "--fleet", "none"], "expected a roster"),
    "fleet list": (["fleet", "list", "--fleet", "none"], "expected a roster"),
}
ANSWERS = {
    "methods": (["methods"], "splitlora"),
    "a method": (["methods", "splitlora"], "2407.00952"),
    "fleets": (["fleets"], "memsfl-six"),
    "families": (["families"], "bert"),
    "the version": (["--version"], "cutlayer"),
}
"""Command lines that need no torch at all, and a word of each answer."""


def commands() -> Iterator[list[str]]:
    """Every command, with those of groups."""
    root = typer.main.get_group(app)
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        yield from [[name]] if inner is None else ([name, other] for other in inner)


COMMANDS = list(commands())


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, str]]:
    """By command line: the exit code, what stood on standard output, and on standard error."""
    here = tmp_path_factory.mktemp("here")
    card = {"task": "classification", "labels": ["bad", "good"], "pooling": "auto", "max_length": 8, "pad_id": 0}
    for name, base in (("adapter", "builtin:minilm"), ("orphan", "fingerprint:0123")):
        (here / name).mkdir()
        (here / name / "cutlayer.json").write_text(json.dumps({**card, "base": base, "columns": {}}))
        (here / name / "adapter_config.json").write_text("{}")
        (here / name / "adapter_model.safetensors").write_bytes(b"")
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text("train: {rounds: 2}\n")
    lines = [words for words, _ in (*WRONG.values(), *ANSWERS.values())]
    for command in COMMANDS:
        lines += [[*command, "--help"], [*command, "--nonsense"]]
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], input=json.dumps(lines), capture_output=True, text=True, cwd=here
    )
    assert child.returncode == 0, child.stderr
    told = [json.loads(line) for line in child.stdout.splitlines()]
    return {tuple(words): (code, out, err) for words, (code, out, err) in zip(lines, told, strict=True)}


@pytest.mark.parametrize(("words", "expected"), WRONG.values(), ids=WRONG)
def test_it_is_told_before_torch_is_imported(
    words: list[str], expected: str, said: dict[tuple[str, ...], tuple[int, str, str]]
) -> None:
    code, _, err = said[tuple(words)]
    assert code == 2, err
    assert expected in " ".join(err.split()).replace(" │ │ ", " ")
    assert "Traceback" not in err


@pytest.mark.parametrize(("words", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_what_needs_no_torch_is_answered(
    words: list[str], expected: str, said: dict[tuple[str, ...], tuple[int, str, str]]
) -> None:
    code, out, err = said[tuple(words)]
    assert (code, err) == (0, "")
    assert expected in out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_helps_and_knows_its_flags(
    command: list[str], said: dict[tuple[str, ...], tuple[int, str, str]]
) -> None:
    code, out, err = said[*command, "--help"]
    assert (code, err) == (0, "")
    assert "Usage: cutlayer" in out
    code, _, err = said[*command, "--nonsense"]
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_is_in_a_table(command: list[str]) -> None:
    """A new command says here what can be wrong with it, or answers without torch."""
    lines = [words for words, _ in (*WRONG.values(), *ANSWERS.values())]
    assert any(words[: len(command)] == command for words in lines)


def test_help_shows_brackets(said: dict[tuple[str, ...], tuple[int, str, str]]) -> None:
    _, out, _ = said["serve", "--help"]
    assert "cutlayer[ray]" in " ".join(out.split()).replace("│ │ ", "").replace("\n", "")
