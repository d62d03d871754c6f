"""Tasks: from rows of text to samples of token ids, labels and loss weights, tokenised once.

Shapes: N samples, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cutlayer.data.rows import Rows
from cutlayer.data.source import Columns, require_columns
from cutlayer.errors import ConfigError, DataError, ModelError
from cutlayer.types import TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED = -100
"""A label that the loss leaves out, as `torch.nn.functional.cross_entropy` has it."""

SEPARATOR = "\n"
"""Stands between prompt and answer; it belongs to the prompt and is masked with it."""

SHORTEST_MAX_LENGTH = 8  # room for the special tokens of a pair and for a little text

TOKENISED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """N rows of ids of different lengths in one flat array: lists would take ten times the memory."""

    flat: NDArray[np.int32]
    offsets: NDArray[np.int64]  # (N + 1,): row n is flat[offsets[n] : offsets[n + 1]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return cls(np.fromiter(chain.from_iterable(rows), np.int32, count=int(offsets[-1])), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> list[int]:
        row = range(len(self))[row]
        ids: list[int] = self.flat[self.offsets[row] : self.offsets[row + 1]].tolist()
        return ids

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def padded(self, rows: NDArray[np.int64], num_tokens: int, fill: int) -> NDArray[np.int64]:
        """The given rows as one (B, T) array with T = `num_tokens`, filled up on the right with `fill`."""
        starts_B = self.offsets[rows]
        columns_T = np.arange(num_tokens)
        inside_BT = columns_T < (self.offsets[rows + 1] - starts_B)[:, None]
        padded_BT = np.full((len(rows), num_tokens), fill, np.int64)
        padded_BT[inside_BT] = self.flat[(starts_B[:, None] + columns_T)[inside_BT]]
        return padded_BT


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A tokenised set of N samples."""

    input_ids: Ragged
    token_type_ids: Ragged | None
    labels: NDArray[np.int64] | Ragged
    """(N,) class ids, or for causal LM one label per token, `MASKED` where the loss is left out."""
    weights: NDArray[np.int64]
    """(N,) loss normalisers: 1, or for causal LM the number of tokens that are predicted and not masked."""
    rows: NDArray[np.int64]
    """(N,) the row of the data set that each sample was: all of them, less the dropped ones."""
    num_dropped: int
    """Rows left out because truncation left nothing to learn from."""
    max_length: int

    @classmethod
    def none(cls) -> Samples:
        """No samples."""
        nothing = np.zeros(0, np.int64)
        return cls(Ragged.of([]), None, nothing, nothing, nothing, num_dropped=0, max_length=0)

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(N,) tokens per sample."""
        return self.input_ids.lengths

    @property
    def classes(self) -> list[int] | None:
        """The class of each sample, to spread the samples by; None for causal LM."""
        if isinstance(self.labels, Ragged):
            return None
        classes: list[int] = self.labels.tolist()
        return classes


@dataclass(frozen=True)
class Classification:
    """One label for one text, or for a pair of texts.

    `label_names` are the classes in the order of their ids; `fitted` sets them from rows, `named` as somebody says.
    """

    kind: ClassVar[TaskKind] = "classification"
    text: str
    label: str
    text_pair: str | None = None
    max_length: int = 128
    label_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_max_length(self.max_length)

    def fit_labels(self, train: Rows, where: str = "training data") -> tuple[str, ...]:
        """The classes of the training set: a ClassLabel's names, or the sorted strings, or the integers 0..n-1.

        Args:
          train: The rows that hold every class.
          where: Names them in errors.

        Raises:
          DataError: a label is null or of another kind, an integer is missing, or there are fewer than two classes.
        """
        require_columns(train, [self.label], where)
        names = train.class_names.get(self.label, ())
        if not names:
            names = _names_of(train.cells(self.label), self.label, where)
        if len(names) < 2:
            raise DataError(
                f"{where}, column {self.label!r}: expected at least two classes, got {names[0]!r} alone. "
                "Name the column that holds the labels."
            )
        return names

    def fitted(self, train: Rows, where: str = "training data") -> Classification:
        """This task with the classes of the training set."""
        return replace(self, label_names=self.fit_labels(train, where))

    def named(self, label_names: Sequence[str]) -> Classification:
        """This task with these classes, whichever of them the rows at hand have.

        Raises:
          ConfigError: There are fewer than two, or one stands there twice.
        """
        if len(set(label_names)) != len(label_names) or len(label_names) < 2:
            raise ConfigError(
                f"labels: expected at least two different class names, got {list(label_names)}. Name each class once."
            )
        return replace(self, label_names=tuple(label_names))

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, where: str = "training data") -> Samples:
        """Tokenises `rows`, truncated to `max_length`; `where` names it in errors.

        Raises:
          ConfigError: the classes are not known yet.
          DataError: a column is missing, a text is null, or a label is none of `label_names`.
        """
        if not self.label_names:
            raise ConfigError("classification task: expected label_names, got none. Call `fitted(train)` first.")
        columns = [self.text] if self.text_pair is None else [self.text, self.text_pair]
        require_columns(rows, [*columns, self.label], where)
        classes = self._classes(rows, where)
        texts = [_texts(rows, column, where) for column in columns]
        encoded = list(_tokenised(tokenizer, *texts, truncation=True, max_length=self.max_length))
        types = [ids for batch in encoded for ids in batch.get("token_type_ids", ())]
        return Samples(
            input_ids=Ragged.of([ids for batch in encoded for ids in batch["input_ids"]]),
            token_type_ids=Ragged.of(types) if types else None,
            labels=np.array(classes, np.int64),
            weights=np.ones(len(classes), np.int64),
            rows=np.arange(len(classes)),
            num_dropped=0,
            max_length=self.max_length,
        )

    def _classes(self, rows: Rows, where: str) -> list[int]:
        """Labels as positions in `label_names`. A number is a name where all names are numbers, else a position."""
        numbered = all(name.isdecimal() for name in self.label_names)
        positions: dict[object, int] = {
            (int(name) if numbered else position): position for position, name in enumerate(self.label_names)
        }
        positions |= {name: position for position, name in enumerate(self.label_names)}
        values = rows.cells(self.label)
        own_names = rows.class_names.get(self.label, ())
        if own_names and set(own_names) <= set(self.label_names):  # maybe the same names in another order
            values = [own_names[value] if value in range(len(own_names)) else value for value in values]
        few = ", ".join(map(repr, self.label_names[:8])) + (", ..." if len(self.label_names) > 8 else "")
        for row, value in enumerate(values):
            if not isinstance(value, str | int) or value not in positions:
                raise _bad_cell(where, row, self.label, f"one of the {len(self.label_names)} labels {few}", value)
        return [positions[value] for value in values]


@dataclass(frozen=True)
class CausalLM:
    """The next token: of an answer to a prompt, which is masked out of the loss, or of plain `text`.

    A sequence is the tokenizer's begin token where it has one, the prompt and `SEPARATOR`, the answer, and the
    end token. Prompt and answer are tokenised apart, so the mask never falls inside a token, and the prompt's
    tokens are those that a model sees when it is asked.
    """

    kind: ClassVar[TaskKind] = "causal-lm"
    prompt: str | None = None
    answer: str | None = None
    text: str | None = None
    max_length: int = 512

    def __post_init__(self) -> None:
        _check_max_length(self.max_length)
        if (self.prompt is None) != (self.answer is None) or (self.prompt is None) == (self.text is None):
            raise ConfigError(
                "causal-lm task: expected a prompt and an answer column, or a text column, got "
                f"prompt={self.prompt!r}, answer={self.answer!r}, text={self.text!r}. Name the one or the other."
            )

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, where: str = "training data") -> Samples:
        """Tokenises `rows`, cut off on the right at `max_length`; `where` names it in errors.

        A row of which that leaves no token to predict is dropped and counted.

        Raises:
          DataError: a column is missing, a text is null, or every row was dropped.
          ModelError: the tokenizer has no end token.
        """
        input_ids, labels = self._sequences(rows, tokenizer, where)
        # Position t predicts token t + 1, so nothing predicts the first token.
        weights = np.array([len(row[1:]) - row[1:].count(MASKED) for row in labels], np.int64)
        kept = np.flatnonzero(weights)
        if len(kept) == 0:
            raise DataError(
                f"{where}: expected a token to predict within max_length={self.max_length}, got none in all "
                f"{len(weights)} rows. Raise max_length or shorten the prompts."
            )
        return Samples(
            input_ids=Ragged.of([input_ids[row] for row in kept]),
            token_type_ids=None,
            labels=Ragged.of([labels[row] for row in kept]),
            weights=weights[kept],
            rows=kept,
            num_dropped=len(weights) - len(kept),
            max_length=self.max_length,
        )

    def _sequences(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, where: str
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids and labels of every row, truncated."""
        if tokenizer.eos_token_id is None:
            raise ModelError("tokenizer: expected an end token for causal-lm, got none. Set its eos_token.")
        columns = [name for name in (self.prompt, self.answer, self.text) if name is not None]
        require_columns(rows, columns, where)
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        targets = _token_ids(tokenizer, _texts(rows, columns[-1], where))
        prompts: list[list[int]] = [[]] * len(targets)
        if self.prompt is not None:
            prompts = _token_ids(tokenizer, [text + SEPARATOR for text in _texts(rows, self.prompt, where)])
        input_ids = [
            [*begin, *prompt, *target, tokenizer.eos_token_id][: self.max_length]
            for prompt, target in zip(prompts, targets, strict=True)
        ]
        num_masked = [len(begin) + len(prompt) if prompt else 0 for prompt in prompts]
        labels = [[MASKED] * len(ids[:num]) + ids[num:] for ids, num in zip(input_ids, num_masked, strict=True)]
        return input_ids, labels


Task = Classification | CausalLM


def task_from(kind: TaskKind, columns: Columns, max_length: int) -> Task:
    """The task of this kind on these columns.

    Raises:
      ConfigError: a column that the task needs is not named, one that it does not use is, or `max_length` is
        too small.
    """
    unused = ("prompt", "answer") if kind == "classification" else ("text_pair", "label")
    for name in unused:
        if getattr(columns, name) is not None:
            raise ConfigError(f"{kind} task: expected no {name} column, got {getattr(columns, name)!r}. Leave it out.")
    if kind == "causal-lm":
        return CausalLM(columns.prompt, columns.answer, columns.text, max_length)
    if columns.text is None or columns.label is None:
        raise ConfigError(
            "classification task: expected a text and a label column, got "
            f"text={columns.text!r}, label={columns.label!r}. Name both."
        )
    return Classification(columns.text, columns.label, columns.text_pair, max_length)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: the pad token, else the end token, else 0; attention never sees the padding."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return int(token_id)
    return 0


def _names_of(values: list[Any], column: str, where: str) -> tuple[str, ...]:
    """The classes in a label column that has no names of its own."""
    if None in values:  # first, because readers turn whole numbers beside a null into fractions
        raise _bad_cell(where, values.index(None), column, "a label", None)
    if all(isinstance(value, str) for value in values):
        return tuple(sorted(set(values)))
    for row, value in enumerate(values):
        if not isinstance(value, int) or value < 0:
            raise _bad_cell(where, row, column, "whole numbers from 0, or strings in all rows", value)
    there = set(values)
    missing = next((number for number in range(max(there)) if number not in there), None)
    if missing is not None:
        raise DataError(
            f"{where}, column {column!r}: expected the labels 0 to {max(there)} without a gap, "
            f"got none with {missing}. Number them 0..n-1 or use strings."
        )
    return tuple(map(str, range(max(there) + 1)))


def _check_max_length(max_length: int) -> None:
    if max_length < SHORTEST_MAX_LENGTH:
        raise ConfigError(f"max_length: expected at least {SHORTEST_MAX_LENGTH}, got {max_length}. Raise it.")


def _texts(rows: Rows, column: str, where: str) -> list[str]:
    texts = rows.cells(column)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise _bad_cell(where, row, column, "text", text)
    return texts


def _bad_cell(where: str, row: int, column: str, expected: str, value: object) -> DataError:
    got = "null" if value is None else shortened(value)
    return DataError(
        f"{where}, row {row} (from 0), column {column!r}: expected {expected}, got {got}. Correct or remove the row."
    )


def _tokenised(tokenizer: PreTrainedTokenizerBase, *texts: list[str], **options: Any) -> Iterator[Any]:
    """The tokenizer's answers for the texts (or text pairs), some thousand at a time to bound the memory."""
    for start in range(0, len(texts[0]), TOKENISED_AT_ONCE):
        some = [each[start : start + TOKENISED_AT_ONCE] for each in texts]
        yield tokenizer(*some, padding=False, return_attention_mask=False, verbose=False, **options)


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    answers = _tokenised(tokenizer, texts, add_special_tokens=False, truncation=False)
    return [ids for answer in answers for ids in answer["input_ids"]]
