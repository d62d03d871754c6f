"""Metrics of answers, each beside the text that was expected: exact match, valid JSON, ROUGE-L, BLEU.

ROUGE-L is rouge-score's F-measure without stemming, the mean over answers, from 0 to 1; BLEU is sacrebleu's of the
whole set with its default tokenizer, from 0 to 100. Both packages are the extra `cutlayer[metrics]`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean

from cutlayer.errors import ConfigError

PACKAGES = {"rouge_l": ("rouge_score", "rouge-score"), "bleu": ("sacrebleu", "sacrebleu")}
Judge = Callable[[Sequence[str], Sequence[str]], float]
"""(answers, expected texts) -> a number that should be high."""


def judges(names: Sequence[str], pattern: str) -> dict[str, Judge]:
    """The metrics by name.

    Args:
      names: exact_match, valid_json, rouge_l, bleu.
      pattern: Of `exact_match`.

    Raises:
      ConfigError: A package that one of them needs is not installed.
    """
    for name in names:
        module, package = PACKAGES.get(name, ("re", ""))
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"train.metrics: expected the package {package} for {name}, got none. "
                "Install it with: pip install 'cutlayer[metrics]'"
            )
    known: dict[str, Judge] = {
        "exact_match": partial(exact_match, pattern=pattern),
        "valid_json": valid_json,
        "rouge_l": rouge_l,
        "bleu": bleu,
    }
    return {name: known[name] for name in names}


def exact_match(answers: Sequence[str], expected: Sequence[str], *, pattern: str = "") -> float:
    """The fraction of answers that say what is expected, but for white space.

    Args:
      answers: What the model said.
      expected: What is right.
      pattern: Where the answer stands in a text: its last match counts, of that the first group if there is one. An
        answer without a match is wrong; an expected text without one is all of it. Empty takes all of both.

    Example:
      >>> exact_match(["2 + 2 is 4 #### 4"], ["#### 4"], pattern="#### *([0-9]+)")
      1.0
    """
    pairs = zip(answers, expected, strict=True)
    return fmean(float(_found(said, pattern) == (_found(right, pattern) or right.split())) for said, right in pairs)


def _found(text: str, pattern: str) -> list[str] | None:
    """The words of the answer in a text."""
    if not pattern:
        return text.split()
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    last = matches[-1]
    return (last[1] if last.re.groups else last[0] or "").split()


def valid_json(answers: Sequence[str], expected: Sequence[str]) -> float:
    """The fraction of answers that are JSON in the form of what is expected: with its keys, or a value of its kind.

    Example:
      >>> valid_json(['{"a": 2}', '{"b": 1}', "a: 1", "[]"], ['{"a": 1}'] * 4)
      0.25
    """
    return fmean(float(_form(said) == _form(right) != "") for said, right in zip(answers, expected, strict=True))


def _form(text: str) -> object:
    """The keys of a JSON object, the type of another value; empty text for what is no JSON."""
    try:
        value = json.loads(text)
    except ValueError:
        return ""
    return value.keys() if isinstance(value, dict) else type(value)


def rouge_l(answers: Sequence[str], expected: Sequence[str]) -> float:
    """The mean F-measure of the longest common subsequence of words."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    pairs = zip(answers, expected, strict=True)
    return fmean(float(scorer.score(right, said)["rougeL"].fmeasure) for said, right in pairs)


def bleu(answers: Sequence[str], expected: Sequence[str]) -> float:
    """BLEU-4 of the whole set."""
    from sacrebleu import corpus_bleu

    return float(corpus_bleu(list(answers), [list(expected)]).score)
