"""The built-in task of meaning representations: reproducible, all different, and each fact is said, and said once."""

from __future__ import annotations

from cutlayer.data.meanings import INSTRUCTION, KINDS, SAID, facts_of, generate
from cutlayer.data.source import load_tables


def test_seeds_differ_and_a_longer_call_begins_with_a_shorter_one() -> None:
    assert generate(40, seed=0) == generate(40, seed=0) != generate(40, seed=1)
    assert generate(40, seed=0)[:13] == generate(13, seed=0)


def test_every_fact_is_said_once_and_no_other_fact_is() -> None:
    rows = generate(3600, seed=0)
    assert len({row["prompt"] for row in rows}) == len(rows)
    seen = set[tuple[str, str, str]]()
    for row in rows:
        instruction, meaning = row["prompt"].split("\n")
        facts, text = facts_of(meaning), row["completion"]
        assert instruction == INSTRUCTION
        assert list(facts)[:2] == ["name", "kind"]
        assert 4 <= len(facts) <= 6
        assert text.count(facts["name"]) == 1
        assert [kind for kind in KINDS if f" {kind}" in text] == [facts["kind"]]
        said = [
            (fact, value, words)
            for fact, values in SAID.items()
            for value, all_words in values.items()
            for words in all_words
            if f" {words.lower()}" in f" {text.lower()}"
        ]
        known = {(fact, value) for fact, value in facts.items() if fact in SAID}
        assert {(fact, value) for fact, value, _ in said} == known, text
        seen.update(said)
    assert len(seen) == sum(len(words) for values in SAID.values() for words in values.values()), "all words are used"


def test_sentences_are_sentences() -> None:
    for row in generate(200, seed=1):
        sentences = row["completion"].removesuffix(".").split(". ")
        assert 1 <= len(sentences) <= 3
        assert all(sentence[0].isupper() for sentence in sentences)


def test_it_is_data_by_name() -> None:
    tables = load_tables("builtin:meanings")
    assert tables.validation is not None
    assert (len(tables.train), len(tables.validation)) == (3000, 600)
    assert not set(tables.train.cells("prompt")) & set(tables.validation.cells("prompt"))
