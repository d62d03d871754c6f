"""`show-data`: rows as tokens, what is learned marked, and what is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from commands import World, run
from cutlayer.cli import show_data
from cutlayer.testing import tiny


@pytest.fixture
def talking(tmp_path: Path) -> list[object]:
    tiny.save_tiny_tokenizer(tiny.save_tiny_model("llama", "causal-lm", tmp_path / "model"), tiny.CHAT_TEMPLATE)
    for name, rows in (("train", 9), ("validation", 4)):
        tiny.write_jsonl(tmp_path / "data" / f"{name}.jsonl", tiny.chats(rows, seed=rows))
    return ["--model", tmp_path / "model", "--data", tmp_path / "data", "--task", "causal-lm", "--max-length", 9]


def test_rows_are_shown_as_tokens_and_marks_stand_around_what_is_learned(talking: list[object]) -> None:
    ran = run("show-data", *talking)
    assert (ran.code, ran.err) == (0, "")
    first, second = tiny.chats(9, seed=9)[:2]
    words = [turn["content"].replace(" ", "|") for turn in (*first["messages"], *second["messages"])]
    lines = ran.out.splitlines()
    assert lines[0] == "row 0: 5 tokens, 2 learned"
    assert lines[1] == f"<s>|{words[0]}|\u00ab{words[1]}|</s>\u00bb"
    assert lines[4] == f"<s>|{words[4]}|\u00ab{words[5]}|</s>\u00bb", "its first exchange has no room"
    assert lines[-3:] == [
        "training data: 9 rows of 5 / 5 / 5 tokens (shortest / median / longest), 4 cut off at 9, 0 dropped",
        "validation data: 4 rows of 5 / 5 / 5 tokens (shortest / median / longest), 2 cut off at 9, 0 dropped",
        "template: the chat template of the model",
    ]


def test_the_form_is_said(talking: list[object], world: World) -> None:
    assert "where a chat has none" in run("show-data", *talking, "--system", "n1").out
    plain = run("show-data", *world.causal_lm())
    assert plain.out.splitlines()[-1] == "template: plain (prompt, line break, answer, end token)"


def test_classes_are_named(world: World) -> None:
    ran = run("show-data", *world.classification())
    assert (ran.code, ran.err) == (0, "")
    row = tiny.reviews(24, seed=24)[0]
    assert ran.out.splitlines()[0].endswith(f" tokens, {row['label']}")
    assert ran.out.splitlines()[1] == row["text"].replace(" ", "|")


def test_in_a_terminal_what_is_learned_has_a_colour(talking: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show_data, "console", lambda: Console(force_terminal=True, color_system="standard", width=200))
    ran = run("show-data", *talking)
    assert "\x1b[1;32m</s>\x1b[0m" in ran.out
    assert "\u00ab" not in ran.out


def test_a_model_without_a_template_says_what_to_do(world: World) -> None:
    flags = [word for word in world.causal_lm() if word not in ("--template", "plain")]
    ran = run("show-data", *flags)
    assert (ran.code, ran.out) == (2, "")
    assert (
        "data.template: expected a model with a chat template, got a tokenizer without one. Say --template" in ran.err
    )
