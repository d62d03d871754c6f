"""`cutlayer check`: what it prints, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import run
from cutlayer.testing.laws import LAWS, sentence

GOOD = '''\
"""Mine: what vanilla split learning is."""

from cutlayer import Method, cut_at, everyone, mean_per_block, relay


def mine(*, cut: int = 1) -> Method:
    return Method((everyone(), cut_at(cut)), relay(), mean_per_block())
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path / "mine.py"


def test_a_method_that_keeps_every_law(mine: Path) -> None:
    ran = run("check", "./mine.py:mine")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == f"{mine}:mine: what vanilla split learning is"
    assert [line[16:] for line in lines[1:-1] if not line.startswith(" ")] == list(map(sentence, LAWS.values()))
    assert not any(line.startswith("broken") for line in lines)
    assert " hold, 0 are broken, " in lines[-1]
    reasons = [line for line, before in zip(lines[1:], lines, strict=False) if before.startswith("does not apply")]
    assert reasons
    assert all(reason.startswith(" " * 16) for reason in reasons)


def test_a_method_that_breaks_one(mine: Path) -> None:
    """All moments begin anew each round, which ordinary training's do not."""
    mine.write_text(
        GOOD.replace("cut_at(cut))", "cut_at(cut), fresh_moments())").replace("everyone,", "everyone, fresh_moments,")
    )
    ran = run("check", "./mine.py:mine", "-o", "cut=2")
    assert (ran.code, ran.err) == (1, "")
    [line] = [index for index, line in enumerate(ran.out.splitlines()) if line.startswith("broken")]
    assert "at cut 1" not in ran.out.splitlines()[line + 1]
    assert "bert, with one device, against plain transformers and PEFT: " in ran.out.splitlines()[line + 1]
    assert " hold, 1 are broken, " in ran.out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["mine.py:yours"], ("expected a function yours", "got mine")),
        (["memslf"], ("got 'memslf'. Did you mean 'memsfl'?",)),
        (["mine.py:mine", "-o", "cot=2"], ("expected an option of", "Did you mean 'cut'?")),
        (["mine.py:mine", "-o", "cut=two"], ("method.cut: expected int", "'two'")),
        (["mine.py:mine", "-o", "cut"], ("-o cut: expected KEY=VALUE",)),
        (["mine.py:mine", "-o", "cut=["], ("-o cut=[: expected a YAML value", "Quote it")),
    ],
)
def test_what_is_no_method_is_one_line(words: list[str], parts: tuple[str, ...], mine: Path) -> None:
    ran = run("check", *words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert all(part in ran.err for part in parts), ran.err
