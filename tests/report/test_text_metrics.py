"""Answers are judged as the libraries judge, and an answer is where the pattern says."""

from __future__ import annotations

import importlib.util
from unittest import mock

import pytest

from cutlayer.errors import ConfigError
from cutlayer.report.text_metrics import bleu, exact_match, judges, rouge_l, valid_json

GSM8K = r"#### *(\S+)"


@pytest.mark.parametrize(
    ("answer", "expected", "pattern", "right"),
    [
        ("it is 4\n#### 4", "two and two\n####  4", GSM8K, 1.0),
        ("#### 3 no, #### 4", "#### 4", GSM8K, 1.0),
        ("4", "#### 4", GSM8K, 0.0),
        ("#### 5", "#### 4", GSM8K, 0.0),
        ("#### 4", "4", GSM8K, 1.0),
        (" a  b ", "a b", "", 1.0),
        ("a", "a b", "", 0.0),
        ("x 12", "12", "[0-9]+", 1.0),
        ("", "a", GSM8K, 0.0),
    ],
)
def test_an_exact_match(answer: str, expected: str, pattern: str, right: float) -> None:
    assert exact_match([answer], [expected], pattern=pattern) == right


@pytest.mark.parametrize(
    ("answer", "expected", "valid"),
    [
        ('{"b": [], "a": "x"}', '{"a": 1, "b": 2}', 1.0),
        ('{"a": 1}', '{"a": 1, "b": 2}', 0.0),
        ('{"a": 1, "b": 2} and more', '{"a": 1, "b": 2}', 0.0),
        ("{'a': 1}", '{"a": 1}', 0.0),
        ("[1]", "[]", 1.0),
        ('"a"', "[]", 0.0),
        ("", "not JSON either", 0.0),
    ],
)
def test_valid_json_is_json_in_the_form_that_is_expected(answer: str, expected: str, valid: float) -> None:
    assert valid_json([answer], [expected]) == valid


def test_rouge_and_bleu() -> None:
    assert rouge_l(["the cat sat", "a"], ["the cat ran", "a"]) == pytest.approx((2 / 3 + 1) / 2)
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)
    assert bleu(["dogs"], ["the cat sat on the mat"]) == 0


def test_a_package_that_is_not_there() -> None:
    assert list(judges(("bleu", "exact_match"), "")) == ["bleu", "exact_match"]
    with (
        mock.patch.object(importlib.util, "find_spec", return_value=None),
        pytest.raises(ConfigError, match=r"rouge-score for rouge_l, got none.*cutlayer\[metrics\]"),
    ):
        judges(("rouge_l",), "")
