"""`generate` says what the model says: streamed, greedy or drawn, question after question."""

from __future__ import annotations

import io

import pytest

from commands import World, run


@pytest.fixture(scope="module")
def writer(made_once: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose causal LM was trained a little; to be read only."""
    world = made_once.linked(tmp_path_factory.mktemp("writer"))
    assert run("train", *world.causal_lm(), "--rounds", 1, "--quiet").code == 0
    return world


def test_it_says_what_the_run_sampled(writer: World) -> None:
    flags = ["--prompt", "n1 n2", "--max-new-tokens", 6]
    greedy = run("generate", writer.out, *flags)
    assert greedy.code == 0
    assert run("generate", writer.out / "adapter", *flags).out == greedy.out
    drawn = [run("generate", writer.out, *flags, "--temperature", 2, "--seed", seed).out for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_questions_and_answers(writer: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n1 n2\nn3 n4\n\nn5 n6\n"))
    ran = run("generate", writer.out, "--chat", "--max-new-tokens", 3)
    alone = [run("generate", writer.out, "--prompt", text, "--max-new-tokens", 3).out for text in ("n1 n2", "n3 n4")]
    assert ran.code == 0
    assert ran.out == "".join(alone), "the plain form has no memory"
    assert ran.err.count("> ") == 3


@pytest.mark.parametrize("flags", [[], ["--chat", "--prompt", "n1"]])
def test_one_way_to_ask(flags: list[str], writer: World) -> None:
    ran = run("generate", writer.out, *flags)
    assert (ran.code, "expected one of --prompt and --chat" in ran.err) == (2, True)
