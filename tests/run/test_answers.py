"""Answers of a run are in its folder and on the screen, and are what training taught it to expect."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from commands import World, run, stopped_after_a_round
from cutlayer.config import read_config
from cutlayer.run.answers import answers_of
from cutlayer.run.inputs import prepare

ASKED = ["-o", "train.samples=[n1 n2, n3 n4]", "-o", "train.metrics=[exact_match, rouge_l, bleu]"]
SHORT = ["-o", "train.new_tokens=4", "-o", "train.metric_rows=5"]


def samples(world: World) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world.out / "samples.jsonl").read_text().splitlines()]


def test_samples_and_metrics_of_a_run_stopped_or_not(world: World) -> None:
    flags = [*world.causal_lm(), *ASKED, *SHORT]
    assert stopped_after_a_round("train", *flags).code == 130
    assert [row["rounds"] for row in samples(world)] == [0, 0, 1, 1]
    assert run("train", "--resume", world.out).code == 0
    stopped = (world.out / "samples.jsonl").read_bytes()
    rows = [json.loads(line)["validation"] for line in (world.out / "metrics.jsonl").read_text().splitlines()]
    assert all(row.keys() >= {"exact_match", "rouge_l", "bleu", "loss"} for row in rows)
    (world.out / "config.yaml").unlink()
    for path in world.out.glob("*.jsonl"):
        path.unlink()
    ran = run("train", *flags)
    assert ran.code == 0
    assert (world.out / "samples.jsonl").read_bytes() == stopped
    assert [(row["rounds"], row["prompt"]) for row in samples(world)] == [
        (rounds, prompt) for rounds in (0, 1, 2) for prompt in ("n1 n2", "n3 n4")
    ]
    shown = [line for line in ran.progress.splitlines() if " -> " in line and ": n" in line]
    assert [line.partition(":")[0] for line in shown[::2]] == ["before training", "after round 1", "after round 2"]


def test_a_held_out_row_is_asked_by_its_prompt_and_expects_its_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model.name": str(world.writer), "data.path": str(world.sums), "data.task": "causal-lm"}
    values |= {"data.prompt": "question", "data.answer": "reply", "fleet": str(world.fleet), "data.max_length": 16}
    values |= {"data.template": "plain"}
    config = read_config(None, ["train.metrics=[exact_match]", "train.metric_rows=12"], values)
    answers = answers_of(prepare(config))
    assert answers is not None
    rows = [json.loads(line) for line in (world.sums / "validation.jsonl").read_text().splitlines()]
    asked = [(answers.tokenizer.decode(ids, skip_special_tokens=True), text) for ids, text in answers.asked]
    assert asked == [(row["question"], row["reply"]) for row in rows]
    told: list[tuple[str, int, int]] = []

    def tell(what: str, done: int, of: int) -> None:
        told.append((what, done, of))

    adapter = answers.base.initial_adapter(0)
    assert answers.judged(adapter, told=tell) == {"exact_match": 0.0}
    assert told == [("answering held-out prompts", done, 12) for done in (0, 12)]
    assert answers.samples(adapter, told=tell) == []
    assert len(told) == 2, "of nothing nothing is told"
    many = replace(answers, prompts={str(row): ids for row, (ids, _) in enumerate(answers.asked)}, new_tokens=3)
    together = many.samples(adapter)
    monkeypatch.setattr("cutlayer.run.answers.AT_ONCE", 5)
    assert many.samples(adapter, told=tell) == together
    assert [done for _, done, of in told[2:] if of == 12] == [0, 5, 5, 10, 10, 12]
    assert [one["prompt"] for one in together] == [str(row) for row in range(12)]
    assert answers_of(prepare(read_config(None, values=values))) is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--text", "question", "-o", "train.metrics=bleu"], "got plain text"),
        (
            ["--prompt", "question", "--answer", "reply", "--template", "plain", "-o", "train.answer_pattern=("],
            "a regular expression",
        ),
    ],
)
def test_what_cannot_be_judged(flags: list[str], said: str, world: World) -> None:
    common = ["--model", world.writer, "--data", world.sums, "--task", "causal-lm", "--max-length", 16]
    ran = run("train", *common, "--fleet", world.fleet, "--out", world.out, *flags)
    assert ran.code == 2
    assert said in ran.err
    assert not world.out.exists()


def test_a_classifier_writes_no_text(world: World) -> None:
    ran = run("train", *world.classification(), "-o", "train.samples=[why]")
    assert (ran.code, "writes no text" in ran.err) == (2, True)
