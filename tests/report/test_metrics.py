import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import DataError
from cutlayer.report.metrics import ClassificationMetrics, LanguageMetrics

NUM_CLASSES = 5
answers = st.lists(st.tuples(*[st.integers(0, NUM_CLASSES - 1)] * 2), min_size=1, max_size=40)


def logits_for(predictions: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), NUM_CLASSES).float()


def macro_f1_by_hand(pairs: list[tuple[int, int]]) -> float:
    """The textbook: precision and recall of every class that anybody has or predicts."""
    scores = []
    for chosen in {class_id for pair in pairs for class_id in pair}:
        hits = sum(predicted == label == chosen for predicted, label in pairs)
        predicted = sum(predicted == chosen for predicted, _ in pairs)
        labelled = sum(label == chosen for _, label in pairs)
        precision = hits / predicted if predicted else 0.0
        recall = hits / labelled if labelled else 0.0
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return sum(scores) / len(scores)


@given(answers, st.integers(1, 7))
def test_classification_equals_the_textbook_whatever_the_batches(pairs: list[tuple[int, int]], batch_size: int) -> None:
    metrics = ClassificationMetrics(NUM_CLASSES)
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        labels = torch.tensor([label for _, label in batch])
        metrics.add(logits_for([predicted for predicted, _ in batch]), labels, loss_sum=0.5 * len(batch))
    result = metrics.result()
    assert result["accuracy"] == sum(predicted == label for predicted, label in pairs) / len(pairs)
    assert result["macro_f1"] == pytest.approx(macro_f1_by_hand(pairs), abs=1e-12)
    assert result["loss"] == pytest.approx(0.5, abs=1e-12)


def test_macro_f1_leaves_out_a_class_that_nobody_has_or_predicts() -> None:
    metrics = ClassificationMetrics(3)
    metrics.add(torch.tensor([[1.0, 0, 0], [1, 0, 0]]), torch.tensor([0, 1]), 1.0)
    # class 0: precision 1/2, recall 1; class 1: nothing right; class 2: does not occur
    assert metrics.result() == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 0) / 2), "loss": 0.5}


def test_the_order_of_the_batches_changes_no_bit() -> None:
    rng = random.Random(0)
    batches = [(rng.uniform(0, 1e6), rng.randint(1, 9)) for _ in range(50)]
    forward, backward = LanguageMetrics(), LanguageMetrics()
    for batch in batches:
        forward.add(*batch)
    for batch in reversed(batches):
        backward.add(*batch)
    assert forward.result() == backward.result()


def test_low_precision_logits_are_fine() -> None:
    metrics = ClassificationMetrics(2)
    metrics.add(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16, requires_grad=True), torch.tensor([1]), 0.1)
    assert metrics.result()["accuracy"] == 1.0


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_named(label: int) -> None:
    with pytest.raises(DataError, match=rf"expected class ids 0\.\.2, got {label}\."):
        ClassificationMetrics(3).add(torch.zeros(2, 3), torch.tensor([0, label]), 1.0)


def test_language_metrics_weigh_by_tokens() -> None:
    metrics = LanguageMetrics()
    metrics.add(loss_sum=6.0, num_tokens=2)
    metrics.add(loss_sum=2.0, num_tokens=6)
    assert metrics.result() == {"loss": 1.0, "perplexity": math.e, "tokens": 8}


def test_perplexity_beyond_a_float_is_infinite() -> None:
    metrics = LanguageMetrics()
    metrics.add(loss_sum=1e4, num_tokens=1)
    assert metrics.result()["perplexity"] == math.inf


@pytest.mark.parametrize("metrics", [ClassificationMetrics(2), LanguageMetrics()])
def test_nothing_evaluated_is_an_error(metrics: ClassificationMetrics | LanguageMetrics) -> None:
    with pytest.raises(DataError, match=r"at least one of the .*, got 0\."):
        metrics.result()
