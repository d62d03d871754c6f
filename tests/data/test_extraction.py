"""The built-in extraction task: reproducible, all different, and each answer is what its review says."""

from __future__ import annotations

import json
from random import Random

from cutlayer.data.extraction import INSTRUCTION, generate
from cutlayer.data.source import load_tables
from cutlayer.data.words import ASPECTS, BAD, GOOD, PRODUCTS, say


def test_seeds_differ_and_a_longer_call_begins_with_a_shorter_one() -> None:
    assert generate(40, seed=0) == generate(40, seed=0) != generate(40, seed=1)
    assert generate(40, seed=0)[:13] == generate(13, seed=0)


def test_reviews_are_all_different_and_answers_are_json_in_the_order_of_the_text() -> None:
    rows = generate(2000, seed=0)
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        instruction, review = row["prompt"].split("\n")
        facts = json.loads(row["completion"])
        assert instruction == INSTRUCTION
        assert list(facts) == ["product", "good", "bad"]
        assert facts["product"] in PRODUCTS
        assert facts["product"] in review
        for side in (facts["good"], facts["bad"]):
            places = [review.lower().index(f"the {aspect}") for aspect in side]
            assert places == sorted(places)
            assert all(aspect in ASPECTS for aspect in side)
        assert 2 <= len(facts["good"]) + len(facts["bad"]) <= 4


def test_an_answer_is_what_the_review_says_and_not_what_its_words_are() -> None:
    """Once in ten times a part is praised by denying a bad word."""
    rng = Random(0)
    said = [say("the lid", True, rng) for _ in range(1000)]
    outright = sum(any(f" {word}" in one for word in GOOD) for one in said)
    assert 850 < outright < 950
    assert all(any(f" {word}" in one for word in GOOD + BAD) for one in said)


def test_it_is_data_by_name() -> None:
    tables = load_tables("builtin:extraction")
    assert tables.validation is not None
    assert (len(tables.train), len(tables.validation)) == (3000, 600)
    assert not set(tables.train.cells("prompt")) & set(tables.validation.cells("prompt"))
