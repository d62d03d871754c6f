"""Tasks: what exactly a row becomes, and which rows are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cutlayer.data.rows import Rows
from cutlayer.data.source import Columns
from cutlayer.data.tasks import (
    CausalLM,
    Classification,
    Ragged,
    Samples,
    Task,
    pad_token_id,
    task_from,
)
from cutlayer.errors import ConfigError, DataError, ModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "\n", "a", "b", "c", "d"]
PAD, UNK, CLS, SEP, BOS, EOS, NEWLINE, A, B, C, D = range(len(WORDS))


def tokenizer(single: str | None = None, **special: str) -> Any:
    """One token per letter; `single` frames a text."""
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    model.pre_tokenizer = Split("", "removed")
    single = single or ("<s> $A" if "bos_token" in special else "[CLS] $A [SEP]")
    model.post_processor = TemplateProcessing(
        single=single,
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP), ("<s>", BOS)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=model, **special)


BERT = tokenizer(pad_token="[PAD]")
BERT.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
LLAMA = tokenizer(bos_token="<s>", eos_token="</s>")
BARE = tokenizer(single="$A", eos_token="</s>")
QWEN = tokenizer(eos_token="</s>", pad_token="[PAD]")


PAIRS = CausalLM("q", "a", template="plain")


def table(**columns: list[Any]) -> Rows:
    return Rows(columns)


def classify(labels: list[Any], names: tuple[str, ...]) -> list[int]:
    task = Classification("text", "label", label_names=names)
    classes = task.encode(table(text=["a"] * len(labels), label=labels), QWEN).classes
    assert classes is not None
    return classes


# --- ragged -------------------------------------------------------------------------------------------------


def test_ragged_rows_come_back_and_pad_on_the_right() -> None:
    rows = [[1, 2, 3], [], [4]]
    ragged = Ragged.of(rows)
    assert [ragged[row] for row in range(len(ragged))] == rows
    assert ragged[-1] == [4]
    assert ragged.lengths.tolist() == [3, 0, 1]
    assert ragged.padded(np.array([2, 0]), 4, fill=-9).tolist() == [[4, -9, -9, -9], [1, 2, 3, -9]]
    with pytest.raises(IndexError):
        ragged[3]


# --- classification -----------------------------------------------------------------------------------------


def test_a_text_and_a_pair() -> None:
    data = table(one=["ab", "c"], two=["d", "dd"], label=["x", "y"])
    single = Classification("one", "label").fitted(data).encode(data, BERT)
    assert [single.input_ids[row] for row in range(2)] == [[CLS, A, B, SEP], [CLS, C, SEP]]
    assert single.weights.tolist() == [1, 1]
    assert single.rows.tolist() == [0, 1]
    assert (len(single), single.num_dropped, single.classes) == (2, 0, [0, 1])
    pair = Classification("one", "label", text_pair="two").fitted(data).encode(data, BERT)
    assert pair.input_ids[0] == [CLS, A, B, SEP, D, SEP]
    assert pair.token_type_ids is not None
    assert pair.token_type_ids[0] == [0, 0, 0, 0, 1, 1]


def test_a_tokenizer_without_token_types() -> None:
    data = table(text=["ab"], label=["x"])
    assert Classification("text", "label", label_names=("x", "y")).encode(data, QWEN).token_type_ids is None


def test_a_long_text_is_truncated_with_its_end_token() -> None:
    data = table(text=["a" * 50], label=["x"])
    samples = Classification("text", "label", max_length=8, label_names=("x", "y")).encode(data, BERT)
    assert samples.input_ids[0] == [CLS, *[A] * 6, SEP]
    assert (samples.max_length, samples.num_cut) == (8, 1)


def test_more_rows_than_are_tokenised_at_once() -> None:
    texts = ["a" * (row % 5 + 1) for row in range(2345)]
    samples = Classification("text", "label", label_names=("x", "y")).encode(
        table(text=texts, label=["x"] * 2345), QWEN
    )
    assert samples.lengths.tolist() == [len(text) + 2 for text in texts]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["no", "yes", "no"], ("no", "yes")),
        ([2, 0, 1], ("0", "1", "2")),
        (["10", "2", "n/a", "-1"], ("-1", "2", "10", "n/a")),
        ([5, 1], ("1", "5")),
        ([True, False], ("false", "true")),
    ],
)
def test_label_names_from_values(labels: list[Any], names: tuple[str, ...]) -> None:
    assert Classification("text", "label").fit_labels(table(label=labels)) == names


def test_label_names_from_the_column() -> None:
    train = Rows({"text": ["a", "b"], "label": [0, 2]}, {"label": ("bad", "never", "good")})
    task = Classification("text", "label").fitted(train)
    assert task.label_names == ("bad", "never", "good")
    assert task.encode(train, QWEN).classes == [0, 2]


def test_the_same_names_in_another_order_mean_the_same_classes() -> None:
    validation = Rows({"text": ["a", "b"], "label": [0, 1]}, {"label": ("good", "bad")})
    assert Classification("text", "label", label_names=("bad", "good")).encode(validation, QWEN).classes == [1, 0]
    with pytest.raises(DataError, match="expected one of the 2 labels 'x', 'y', got 0"):
        Classification("text", "label", label_names=("x", "y")).encode(validation, QWEN)


def test_a_label_is_its_spelling_and_no_position() -> None:
    """The other rows of its file say nothing of it: `1, 2, 3` beside the classes `1, 2, 3, n/a` are the first three."""
    assert classify(["b", "a"], ("a", "b")) == [1, 0]
    assert classify([1, 2, 3], ("1", "2", "3", "n/a")) == classify(["1", "2", "3"], ("1", "2", "3", "n/a")) == [0, 1, 2]
    assert classify([10, 2], ("1", "10", "2")) == [1, 2]
    assert classify(["10", "2"], ("1", "10", "2")) == [1, 2]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, None, 1], r"row 1 \(from 0\), column 'label': expected a label: text or a whole number, got null"),
        ([0.0, 1.5], r"row 0 \(from 0\), column 'label': expected a label: text or a whole number, got 0.0"),
        (["yes", "yes"], "expected at least two classes, got 'yes' alone"),
        ([[1], [2]], r"row 0 \(from 0\), column 'label': expected a label: .* got \[1\]"),
    ],
)
def test_labels_that_cannot_be_learned(labels: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        Classification("text", "label").fit_labels(table(label=labels))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "row", "got"),
    [
        (["a", "c"], 1, "'c'"),
        (["b", 2], 1, "2"),
        ([-1], 0, "-1"),
        (["a", "c" * 500], 1, "'cccccccccccc...ccccccccccccc'"),
    ],
)
def test_labels_that_training_does_not_have(labels: list[Any], row: int, got: str) -> None:
    task, data = Classification("text", "label", label_names=("a", "b")), table(text=["a"] * len(labels), label=labels)
    with pytest.raises(DataError) as caught:
        task.encode(data, QWEN, where="validation data")
    assert (
        f"validation data, row {row} (from 0), column 'label': expected one of the 2 labels 'a', 'b', got {got}."
        in str(caught.value)
    )


def test_labels_are_needed_first() -> None:
    with pytest.raises(ConfigError, match="expected label_names, got none"):
        Classification("text", "label").encode(table(text=["a"], label=[0]), QWEN)


# --- causal LM ----------------------------------------------------------------------------------------------

ASKED = {"q": ["ab", "c"], "a": ["cd", "d"]}


@pytest.mark.parametrize(
    ("tok", "ids", "labels"),
    [
        (LLAMA, [BOS, A, B, NEWLINE, C, D, EOS], [-100, -100, -100, -100, C, D, EOS]),
        (QWEN, [A, B, NEWLINE, C, D, EOS], [-100, -100, -100, C, D, EOS]),
    ],
)
def test_the_prompt_is_masked_and_the_answer_is_not(tok: Any, ids: list[int], labels: list[int]) -> None:
    samples = CausalLM("q", "a", template="plain").encode(table(**ASKED), tok)
    assert isinstance(samples.labels, Ragged)
    assert (samples.input_ids[0], samples.labels[0]) == (ids, labels)
    assert samples.weights.tolist() == [3, 2]
    assert samples.classes is None


@pytest.mark.parametrize(("tok", "begin", "weight"), [(LLAMA, [BOS], 3), (QWEN, [], 2)])
def test_plain_text_is_not_masked_and_its_first_token_is_not_predicted(tok: Any, begin: list[int], weight: int) -> None:
    samples = CausalLM(text="t").encode(table(t=["ab"]), tok)
    assert isinstance(samples.labels, Ragged)
    assert samples.input_ids[0] == samples.labels[0] == [*begin, A, B, EOS]
    assert samples.weights.tolist() == [weight]


def test_prompts_are_cut_before_answers_and_from_the_left() -> None:
    data = table(q=["bcb" + "a" * 20, "bccaa", "a", "aa"], a=["d", "dddd", "d", "d" * 20])
    samples = CausalLM("q", "a", template="plain", max_length=8).encode(data, LLAMA)
    assert isinstance(samples.labels, Ragged)
    assert samples.rows.tolist() == [0, 1, 2, 3]
    assert [samples.input_ids[row] for row in range(4)] == [
        [BOS, *[A] * 4, NEWLINE, D, EOS],
        [BOS, A, NEWLINE, *[D] * 4, EOS],
        [BOS, A, NEWLINE, D, EOS],
        [BOS, NEWLINE, *[D] * 6],
    ]
    assert samples.labels[1] == [-100] * 3 + [D] * 4 + [EOS]
    assert samples.weights.tolist() == [2, 5, 2, 6]
    assert (samples.num_cut, samples.num_dropped) == (3, 0)


def test_plain_text_is_cut_on_the_right_and_what_is_empty_is_dropped() -> None:
    samples = CausalLM(text="t", max_length=8).encode(table(t=["ab" * 9, "", "a"]), QWEN)
    assert samples.rows.tolist() == [0, 2]
    assert samples.input_ids[0] == [A, B] * 4
    assert (samples.num_cut, samples.num_dropped) == (1, 1)
    assert samples.line == ("2 rows of 2 / 5 / 8 tokens (shortest / median / longest), 1 cut off at 8, 1 dropped")


def test_a_prompt_without_text_is_still_masked() -> None:
    samples = CausalLM("q", "a", template="plain").encode(table(q=[""], a=[""]), QWEN)
    assert isinstance(samples.labels, Ragged)
    assert (samples.input_ids[0], samples.labels[0]) == ([NEWLINE, EOS], [-100, EOS])


def test_nothing_left_to_learn_from() -> None:
    with pytest.raises(DataError, match="expected a token to predict within max_length=8, got none in all 2 rows"):
        CausalLM(text="t", max_length=8).encode(table(t=["", ""]), QWEN)


def test_a_text_without_a_token() -> None:
    """BERT frames it; a decoder has nothing to look at."""
    rows = table(text=["zz", "a", ""], label=["x", "x", "y"]).select([1, 2])
    task = Classification("text", "label", label_names=("x", "y"))
    assert task.encode(rows, BERT).lengths.tolist() == [3, 2]
    with pytest.raises(DataError, match=r"row 2 .*, column 'text': expected text that this tokenizer makes a token of"):
        task.encode(rows, BARE)


def test_a_whole_number_is_its_digits_where_text_is_read() -> None:
    digits = CausalLM("q", "a", template="plain").encode(table(q=["ab"], a=["12"]), LLAMA)
    assert (
        CausalLM("q", "a", template="plain").encode(table(q=["ab"], a=[12]), LLAMA).input_ids[0] == digits.input_ids[0]
    )


def test_a_tokenizer_without_end_token() -> None:
    with pytest.raises(ModelError, match="expected an end token for causal-lm, got none"):
        CausalLM(text="t").encode(table(t=["ab"]), BERT)


# --- both ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "column"),
    [
        (Classification("t", "l", label_names=("x", "y")), "t"),
        (Classification("other", "l", text_pair="t", label_names=("x", "y")), "t"),
        (CausalLM(text="t"), "t"),
        (CausalLM("t", "other", template="plain"), "t"),
        (CausalLM("other", "t", template="plain"), "t"),
    ],
)
@pytest.mark.parametrize(("texts", "got"), [(["a", None], "null"), ([1.5, 2], "1.5")])
def test_a_text_that_is_none(task: Task, column: str, texts: list[Any], got: str) -> None:
    data = table(t=texts, other=["a", "b"], l=["x", "y"])
    with pytest.raises(DataError, match=rf"there, row {len(got) // 4} .*, column '{column}': expected text, got {got}"):
        task.encode(data, LLAMA, where="there")


@pytest.mark.parametrize(
    "task", [Classification("q", "a", label_names=("x", "y")), CausalLM("q", "a", template="plain")]
)
def test_a_column_that_is_not_there(task: Task) -> None:
    with pytest.raises(DataError, match="there: expected a column 'q', got only 'query', 'a'"):
        task.encode(table(query=["a"], a=["b"]), LLAMA, where="there")


def test_tasks_from_columns() -> None:
    assert task_from("classification", Columns(text="t", label="l", text_pair="p"), 64) == Classification(
        "t", "l", "p", max_length=64
    )
    assert task_from("causal-lm", Columns(prompt="p", answer="a"), 64) == CausalLM("p", "a", max_length=64)
    assert task_from("causal-lm", Columns(text="t"), 64) == CausalLM(text="t", max_length=64)
    chats = task_from("causal-lm", Columns(messages="m"), 64, "plain", None)
    assert chats == CausalLM(messages="m", max_length=64, template="plain")
    with pytest.raises(ConfigError, match=r"data\.template: expected none for classification, got 'plain'"):
        task_from("classification", Columns(text="t", label="l"), 64, "plain")
    assert (Classification.kind, CausalLM.kind) == ("classification", "causal-lm")


@pytest.mark.parametrize(
    ("kind", "columns", "says"),
    [
        ("classification", Columns(text="t"), "expected a text and a label column"),
        ("classification", Columns(label="l"), "expected a text and a label column"),
        ("classification", Columns(text="t", label="l", prompt="p"), "expected no prompt column, got 'p'"),
        ("causal-lm", Columns(prompt="p"), "expected a prompt and an answer column, or a messages column, or a text"),
        ("causal-lm", Columns(prompt="p", answer="a", text="t"), "expected a prompt and an answer column, or a messag"),
        ("causal-lm", Columns(messages="m", text="t"), "expected a prompt and an answer column, or a messages column"),
        ("classification", Columns(text="t", label="l", messages="m"), "expected no messages column, got 'm'"),
        ("causal-lm", Columns(text="t", label="l"), "expected no label column, got 'l'"),
    ],
)
def test_columns_that_make_no_task(kind: Any, columns: Columns, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        task_from(kind, columns, 64)


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_a_length_without_room(kind: Any) -> None:
    columns = Columns(text="t", label="l" if kind == "classification" else None)
    with pytest.raises(ConfigError, match="max_length: expected at least 8, got 7"):
        task_from(kind, columns, 7)


def test_the_token_to_pad_with() -> None:
    assert [pad_token_id(tok) for tok in (QWEN, LLAMA, tokenizer())] == [PAD, EOS, 0]


def test_samples_have_a_length() -> None:
    samples: Samples = CausalLM(text="t").encode(table(t=["ab", "abc"]), LLAMA)
    assert len(samples) == 2
    assert samples.lengths.tolist() == [4, 5]
