"""`--page` of the commands: how it is said, and that a run with one is the run without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
from commands import World, run


def test_a_run_with_a_page_is_the_run_without(made_once: World, tmp_path: Path) -> None:
    flags = [*made_once.classification(), "--rounds", 2, "--out"]
    with_one = run("train", *flags, tmp_path / "one", "--page")
    without = run("train", *flags, tmp_path / "two")
    assert (with_one.code, without.code) == (0, 0)
    assert re.search(r"^page: http://127\.0\.0\.1:\d+/$", with_one.err, re.MULTILINE)
    assert "page:" not in with_one.out + without.out + without.err
    for name in ("metrics.jsonl", "events.jsonl", "contributions.jsonl"):
        lines = [re.sub(r'"wall_seconds": [^,]*', "", (tmp_path / run / name).read_text()) for run in ("one", "two")]
        assert lines[0] == lines[1]
    first, second = ((tmp_path / run / "adapter/adapter_model.safetensors").read_bytes() for run in ("one", "two"))
    assert first == second


def test_what_cannot_be_is_one_line(made_once: World, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    for words, expected in (
        (["--page", "0.0.0.0:0"], "--page: expected TLS where others can connect"),
        (["--page=nowhere"], "--page: expected HOST:PORT"),
        (["--page-tls", tmp_path], "--page-tls: expected --page HOST:PORT beside it"),
    ):
        ran = run("train", *made_once.classification(), *out, *words)
        assert (ran.code, len(ran.err.splitlines())) == (2, 1)
        assert expected in ran.err
        assert not (tmp_path / "run").exists()
