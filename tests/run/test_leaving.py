"""Sentences on what leaves a device; `test_understood.py` and `test_recommended.py` ask for those of real plans."""

from __future__ import annotations

from cutlayer.run.leaving import Leaving, sentences


def test_a_language_models_labels_are_text() -> None:
    lines = sentences(Leaving(activations=True, labels=True, text="as labels"), task="causal-lm")
    assert "the tokens that are learned, which are text" in lines[0]


def test_labels_that_stay_are_not_named() -> None:
    lines = sentences(Leaving(activations=True, labels=False, text=None), task="classification")
    assert "labels" not in lines[0]
    assert "a curious server can read the texts" in lines[1]
