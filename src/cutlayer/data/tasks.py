"""Tasks: from rows of text to samples of token ids, labels and loss weights, tokenised once.

Shapes: N samples, B batch, T tokens.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cutlayer.data.chat import (
    PLAIN,
    SEPARATOR,
    BadChat,
    Chat,
    Rendered,
    Template,
    bad_row,
    by_row,
    chat_of,
    exchange,
    template_of,
)
from cutlayer.data.rows import Rows
from cutlayer.data.source import Columns, require_columns
from cutlayer.errors import ConfigError, DataError, ModelError
from cutlayer.reading import TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MASKED = -100
"""A label that the loss leaves out, as `torch.nn.functional.cross_entropy` has it."""

FOUND_BY_NAME = (("messages",), ("conversations",), ("prompt", "completion"), ("prompt", "answer"), ("text",))
"""Columns that causal LM looks for, in this order, where none is named."""

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


@dataclass(frozen=True, eq=False)
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
    num_cut: int = 0
    """Rows of which something was cut off, the dropped ones among them."""
    num_silent: int = 0
    """Rows with an empty answer, the dropped ones among them: of it its end is learned, and so to say nothing."""

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

    @cached_property
    def digest(self) -> str:
        """A digest of what is learned from the set: other rows, another order or another tokenizer is another one."""
        labels = self.labels if isinstance(self.labels, Ragged) else Ragged.of([self.labels.tolist()])
        digest = hashlib.sha256()
        for part in (self.input_ids, labels, *([] if self.token_type_ids is None else [self.token_type_ids])):
            for array in (part.offsets.astype("<i8"), part.flat.astype("<i4")):
                digest.update(len(array).to_bytes(8, "little") + array.tobytes())
        return digest.hexdigest()[:16]

    @property
    def classes(self) -> list[int] | None:
        """The class of each sample, to spread the samples by; None for causal LM."""
        if isinstance(self.labels, Ragged):
            return None
        classes: list[int] = self.labels.tolist()
        return classes

    @property
    def type_ids(self) -> NDArray[np.int32] | None:
        """The type of each token of all samples, where the tokenizer gives some."""
        return None if self.token_type_ids is None else self.token_type_ids.flat

    @property
    def line(self) -> str:
        """The set in a line: how many rows, how long, and what was lost of them."""
        if len(self) == 0:
            return "no rows"
        least, median, most = int(self.lengths.min()), int(np.median(self.lengths)), int(self.lengths.max())
        return (
            f"{len(self):,} rows of {least} / {median} / {most} tokens (shortest / median / longest), "
            f"{self.num_cut:,} cut off at {self.max_length}, {self.num_dropped:,} dropped"
            f"{f', {self.num_silent:,} with an empty answer' if self.num_silent else ''}"
        )

    def learned(self, sample: int) -> list[bool]:
        """Whether the loss looks at each token of a sample; for a class, at none."""
        if not isinstance(self.labels, Ragged):
            return [False] * len(self.input_ids[sample])
        return [position > 0 and label != MASKED for position, label in enumerate(self.labels[sample])]


@dataclass(frozen=True)
class Classification:
    """One label for one text, or for a pair of texts.

    A label is what it is spelled like, so that the same word is the same class in every file and on every device:
    1 and "1" are one class, and neither is a position among the classes.

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
        """The classes of the training set: a ClassLabel's names, or all labels, sorted; numbers as numbers.

        Args:
          train: The rows that hold every class.
          where: Names them in errors.

        Raises:
          DataError: a label is null or of another kind, or there are fewer than two classes.
        """
        require_columns(train, [self.label], where)
        names = train.class_names.get(self.label) or tuple(sorted(set(self._spelled(train, where)), key=_by_number))
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
        for row, ids in enumerate(ids for batch in encoded for ids in batch["input_ids"]):
            if not ids:
                raise _bad_cell(where, rows, row, self.text, "text that this tokenizer makes a token of", texts[0][row])
        types = [ids for batch in encoded for ids in batch.get("token_type_ids", ())]
        num_cut = sum(bool(text.overflowing) for batch in encoded for text in batch.encodings or ())
        return Samples(
            input_ids=Ragged.of([ids for batch in encoded for ids in batch["input_ids"]]),
            token_type_ids=Ragged.of(types) if types else None,
            labels=np.array(classes, np.int64),
            weights=np.ones(len(classes), np.int64),
            rows=np.arange(len(classes)),
            num_dropped=0,
            max_length=self.max_length,
            num_cut=num_cut,
        )

    def _classes(self, rows: Rows, where: str) -> list[int]:
        """Labels as positions in `label_names`."""
        positions = {name: position for position, name in enumerate(self.label_names)}
        few = ", ".join(map(repr, self.label_names[:8])) + (", ..." if len(self.label_names) > 8 else "")
        spelled = self._spelled(rows, where)
        for row, name in enumerate(spelled):
            if name not in positions:
                expected = f"one of the {len(self.label_names)} labels {few}"
                raise _bad_cell(where, rows, row, self.label, expected, rows.cells(self.label)[row])
        return [positions[name] for name in spelled]

    def _spelled(self, rows: Rows, where: str) -> list[str]:
        """Each label as its word; of a column that has names of its own, the name."""
        own_names, spelled = rows.class_names.get(self.label, ()), list[str]()
        for row, cell in enumerate(rows.cells(self.label)):
            if isinstance(cell, bool):
                cell = str(cell).lower()  # as JSON has it
            elif isinstance(cell, int):
                cell = own_names[cell] if cell in range(len(own_names)) else str(cell)
            if not isinstance(cell, str):
                raise _bad_cell(where, rows, row, self.label, "a label: text or a whole number", cell)
            spelled.append(cell)
        return spelled


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row of causal LM.

    Attributes:
      ids: of the tokens.
      labels: of the tokens, `MASKED` where nothing is learned.
      words: where the prompt's own words begin and end, which may be cut: the frame around them may not.
      is_cut: whether something is gone.
      is_silent: whether an answer in it is empty.
    """

    ids: list[int]
    labels: list[int]
    words: tuple[int, int]
    is_cut: bool = False
    is_silent: bool = False

    def within(self, max_length: int) -> Tokens:
        """The row in at most so many tokens: the words lose their beginning, then the whole its end."""
        if len(self.ids) <= max_length:
            return self
        start, end = self.words
        cut = start + min(len(self.ids) - max_length, end - start)
        ids, labels = ([*values[:start], *values[cut:]][:max_length] for values in (self.ids, self.labels))
        return replace(self, ids=ids, labels=labels, words=(start, start + end - cut), is_cut=True)

    @property
    def weight(self) -> int:
        """Tokens that are learned: nothing predicts the first."""
        return len(self.labels[1:]) - self.labels[1:].count(MASKED)


@dataclass(frozen=True)
class CausalLM:
    """The next token: of what an assistant says in a chat, of an answer to a prompt, or of plain `text`.

    Chats (`messages`), and prompts with answers, are written by a chat template, and the loss is on the assistant's
    turns; in the plain form a sequence is the prompt and `SEPARATOR`, the answer, and the end token, and the loss is on
    the last two. A begin token is there where the tokenizer itself puts one, and never twice. Where no column is
    named, `settled` finds them by name.

    Attributes:
      prompt: column of prompts; a cell is a text, or a list of turns.
      answer: column of answers, likewise.
      text: column of plain text, all of which is learned.
      max_length: tokens at which a sequence is cut: a prompt loses its beginning before an answer its end.
      messages: column of chats, OpenAI's or ShareGPT's.
      template: the text of the chat template, `plain`, or None for the tokenizer's own.
      system: the system turn of chats that have none; None for none.
    """

    kind: ClassVar[TaskKind] = "causal-lm"
    prompt: str | None = None
    answer: str | None = None
    text: str | None = None
    max_length: int = 512
    messages: str | None = None
    template: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        _check_max_length(self.max_length)
        named = [name for name in (self.messages, self.prompt, self.text) if name is not None]
        if (self.prompt is None) != (self.answer is None) or len(named) > 1:
            raise ConfigError(
                "causal-lm task: expected a prompt and an answer column, or a messages column, or a text column, got "
                f"prompt={self.prompt!r}, answer={self.answer!r}, messages={self.messages!r}, text={self.text!r}. "
                "Name one of the three, or none to have them found."
            )
        if self.system is not None and (self.template == PLAIN or self.text is not None):
            form = f"column {self.text!r}" if self.text is not None else "the plain form"
            raise ConfigError(f"data.system: expected none for {form}, got {shortened(self.system)}. Leave it out.")

    def settled(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, where: str = "training data") -> CausalLM:
        """This task with its columns, and with the text of its template where they are chats.

        Raises:
          DataError: No column has a name that is known.
          ConfigError: There are chats, and no template for them.
        """
        task = self
        if (self.messages or self.prompt or self.text) is None:
            there = set(rows.column_names)
            found = next((names for names in FOUND_BY_NAME if there.issuperset(names)), None)
            if found is None:
                raise DataError(
                    f"{where}: expected a column messages, conversations or text, or prompt and completion, got only "
                    f"{', '.join(map(repr, rows.column_names))}. Name yours: --messages, --prompt and --answer, or "
                    "--text."
                )
            if len(found) == 2:
                task = replace(self, prompt=found[0], answer=found[1])
            elif found == ("text",):
                task = replace(self, text="text")
            else:
                task = replace(self, messages=found[0])
        if task.text is not None:
            return task
        if task.messages is not None and task.template == PLAIN:
            raise ConfigError(
                f"data.template: expected a template with turns for column {task.messages!r}, got {PLAIN}, which has "
                "none. Leave it out, or name a file."
            )
        return replace(task, template=template_of(task.template, tokenizer))

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, where: str = "training data") -> Samples:
        """Tokenises `rows`, each cut to `max_length`; `where` names it in errors.

        A row of which that leaves no token to predict is dropped and counted.

        Raises:
          DataError: a column is missing, a cell is null or no chat, a prompt holds the template's own tokens, a chat
            has nothing to learn, or every row was dropped.
          ConfigError: there is no template.
          ModelError: the tokenizer has no end token.
        """
        task = self.settled(rows, tokenizer, where)
        if tokenizer.eos_token_id is None:
            raise ModelError("tokenizer: expected an end token for causal-lm, got none. Set its eos_token.")
        columns = [name for name in (task.messages, task.prompt, task.answer, task.text) if name is not None]
        require_columns(rows, columns, where)
        how = task._of_text if task.text is not None else task._of_pairs if task.template == PLAIN else task._of_chats
        rendered = how(rows, tokenizer, where)
        kept = [row for row, one in enumerate(rendered) if one.weight]
        if not kept:
            raise DataError(
                f"{where}: expected a token to predict within max_length={self.max_length}, got none in all "
                f"{len(rendered)} rows. Raise max_length or shorten the prompts."
            )
        return Samples(
            input_ids=Ragged.of([rendered[row].ids for row in kept]),
            token_type_ids=None,
            labels=Ragged.of([rendered[row].labels for row in kept]),
            weights=np.array([rendered[row].weight for row in kept], np.int64),
            rows=np.array(kept, np.int64),
            num_dropped=len(rendered) - len(kept),
            max_length=self.max_length,
            num_cut=sum(one.is_cut for one in rendered),
            num_silent=sum(one.is_silent for one in rendered),
        )

    def _of_text(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, where: str) -> list[Tokens]:
        """Plain text, cut on the right."""
        assert self.text is not None
        begin, end = begin_ids(tokenizer), [tokenizer.eos_token_id]
        sequences = []
        for ids in _token_ids(tokenizer, _texts(rows, self.text, where)):
            before = [] if ids[: len(begin)] == begin else begin
            sequence = [*before, *ids, *([] if ids[-1:] == end else end)]
            sequences.append(Tokens(sequence, sequence, (0, 0)).within(self.max_length))
        return sequences

    def _of_pairs(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, where: str) -> list[Tokens]:
        """Prompts and answers in the plain form. They are tokenised apart, so that the mask never falls inside a token
        and the prompt's tokens are those that a model sees when it is asked."""
        column, (prompts, answers) = self.prompt or "", self._pair(lambda name: _texts(rows, name, where))
        marks = _marks(tokenizer)
        for row, prompt in enumerate(prompts):
            if found := next((mark for mark in marks if mark in prompt), None):
                error = BadChat(f"expected words without the tokenizer's own tokens, got {found!r}")
                raise bad_row(where, rows.number(row), column, error)
        begin, end, sequences = begin_ids(tokenizer), [tokenizer.eos_token_id], []
        asked = _token_ids(tokenizer, [prompt + SEPARATOR for prompt in prompts])
        for prompt_ids, answer_ids, answer in zip(asked, _token_ids(tokenizer, answers), answers, strict=True):
            learned = [*answer_ids, *([] if answer_ids[-1:] == end else end)]
            read = len(begin) + len(prompt_ids)
            sequence = Tokens(
                [*begin, *prompt_ids, *learned],
                [*[MASKED] * read, *learned],
                (len(begin), max(len(begin), read - 1)),  # the last token has the separator
                is_silent=not answer.strip(),
            )
            sequences.append(sequence.within(self.max_length))
        return sequences

    def _of_chats(self, rows: Rows, tokenizer: PreTrainedTokenizerBase, where: str) -> list[Tokens]:
        """Chats as their template writes them."""
        assert self.template is not None, "settled"
        if not tokenizer.is_fast:
            raise ModelError(
                "tokenizer: expected one that knows where its tokens stand in a text (tokenizer.json), got "
                f"{type(tokenizer).__name__}. Save the fast one, or say --template plain."
            )
        template = Template(self.template, tokenizer, self.system)
        if self.messages is not None:
            column, chats = self.messages, by_row(chat_of, rows.cells(self.messages), where, self.messages, rows.number)
        else:
            column, cells = f"{self.prompt}, {self.answer}", zip(*self._pair(rows.cells), strict=True)
            chats = by_row(lambda cell: exchange(*cell), cells, where, column, rows.number)
        whole = _located(tokenizer, by_row(template.rendered, chats, where, column, rows.number))
        for row, one in enumerate(whole):
            if not one.weight:
                raise bad_row(where, rows.number(row), column, BadChat("expected a token to learn, got none"))
            if len(one.ids) > self.max_length:
                whole[row] = self._shortened(chats[row], template, tokenizer)
            if chats[row].is_silent:
                whole[row] = replace(whole[row], is_silent=True)
        return whole

    def _pair(self, cells: Callable[[str], list[Any]]) -> tuple[list[Any], list[Any]]:
        """The cells of both columns."""
        assert self.prompt is not None, "of a task on pairs"
        assert self.answer is not None, "because the prompt is named"
        return cells(self.prompt), cells(self.answer)

    def _shortened(self, chat: Chat, template: Template, tokenizer: PreTrainedTokenizerBase) -> Tokens:
        """A chat that is too long: without its oldest exchanges, then without the beginning of the user's words, then
        without the end of the answer. What the template writes around them stays, the system's turn with it."""
        few = len(chat.exchanges) - 1

        def tokens(left_out: int, *, words: bool = False) -> Tokens:
            left = chat.without(left_out)
            text = template.rendered(left)
            return _located(tokenizer, [text], [template.words(template.complete(left), text)] if words else None)[0]

        left_out = bisect_left(range(few), True, key=lambda number: len(tokens(number).ids) <= self.max_length)
        return replace(tokens(left_out, words=True).within(self.max_length), is_cut=True)


Task = Classification | CausalLM


def task_from(
    kind: TaskKind, columns: Columns, max_length: int, template: str | None = None, system: str | None = None
) -> Task:
    """The task of this kind on these columns.

    Args:
      kind: What is learnt.
      columns: Which column plays which part; of causal LM none for those that `settled` finds.
      max_length: Tokens at which a text is cut off.
      template: See `CausalLM.template`.
      system: See `CausalLM.system`.

    Raises:
      ConfigError: a column that the task needs is not named, one that it does not use is, or `max_length` is
        too small.
    """
    unused = ("prompt", "answer", "messages") if kind == "classification" else ("text_pair", "label")
    for name in unused:
        if getattr(columns, name) is not None:
            raise ConfigError(f"{kind} task: expected no {name} column, got {getattr(columns, name)!r}. Leave it out.")
    if kind == "causal-lm":
        return CausalLM(columns.prompt, columns.answer, columns.text, max_length, columns.messages, template, system)
    for name, value in (("template", template), ("system", system)):
        if value is not None:
            raise ConfigError(f"data.{name}: expected none for {kind}, got {shortened(value)}. Leave it out.")
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


def _by_number(name: str) -> tuple[int, int, str]:
    """A key to sort class names by: whole numbers by what they are, before all others."""
    number = int(name) if re.fullmatch(r"-?[0-9]+", name) else None
    return (1, 0, name) if number is None else (0, number, name)


def _check_max_length(max_length: int) -> None:
    if max_length < SHORTEST_MAX_LENGTH:
        raise ConfigError(f"max_length: expected at least {SHORTEST_MAX_LENGTH}, got {max_length}. Raise it.")


def _texts(rows: Rows, column: str, where: str) -> list[str]:
    """The cells of a column that is read as text; a whole number is its digits."""
    texts = [str(cell) if isinstance(cell, int) and not isinstance(cell, bool) else cell for cell in rows.cells(column)]
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise _bad_cell(where, rows, row, column, "text", text)
    return texts


def _bad_cell(where: str, rows: Rows, row: int, column: str, expected: str, value: object) -> DataError:
    got = "null" if value is None else shortened(value)
    return DataError(
        f"{where}, row {rows.number(row)} (from 0), column {column!r}: expected {expected}, got {got}. Correct or "
        "remove the row."
    )


def _tokenised(tokenizer: PreTrainedTokenizerBase, *texts: list[str], **options: Any) -> Iterator[Any]:
    """The tokenizer's answers for the texts (or text pairs), some thousand at a time to bound the memory."""
    for start in range(0, len(texts[0]), TOKENISED_AT_ONCE):
        some = [each[start : start + TOKENISED_AT_ONCE] for each in texts]
        yield tokenizer(*some, padding=False, return_attention_mask=False, verbose=False, **options)


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    answers = _tokenised(tokenizer, texts, add_special_tokens=False, truncation=False)
    return [ids for answer in answers for ids in answer["input_ids"]]


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin token, where the tokenizer puts one in front of a text itself; else nothing."""
    begin = tokenizer.bos_token_id
    return [] if begin is None or tokenizer("")["input_ids"][:1] != [begin] else [begin]


def _marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The marks that begin or end a text or a turn, for this tokenizer."""
    ends = [str(token) for token in (tokenizer.bos_token, tokenizer.eos_token) if token is not None]
    if tokenizer.chat_template is not None:
        with suppress(ConfigError):  # a template that shows no chat has no part in the plain form
            ends += Template(tokenizer.get_chat_template(), tokenizer).markers
    return tuple(ends)


def _located(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Rendered], words: Sequence[tuple[int, int]] | None = None
) -> list[Tokens]:
    """The tokens of rendered chats, and which are learned: those that end inside what is learned. A token's end is
    surer than its beginning, which some tokenizers say without the blanks in front."""
    encoded = _tokenised(
        tokenizer,
        [one.text for one in texts],
        add_special_tokens=False,
        truncation=False,
        return_offsets_mapping=True,
    )
    located = list[Tokens]()
    for batch in encoded:
        for ids, offsets in zip(batch["input_ids"], batch["offset_mapping"], strict=True):
            starts, ends = np.array(texts[len(located)].learned, np.int64).T
            ends_T = np.array(offsets, np.int64).reshape(-1, 2)[:, 1]
            last = np.searchsorted(starts, ends_T, side="left") - 1  # the last part that begins before the token's end
            learned = (last >= 0) & (ends_T <= ends[last])
            labels = np.where(learned, ids, MASKED).tolist()
            start, end = (0, 0) if words is None else words[len(located)]
            place = np.searchsorted(ends_T, (start, end), side="right")
            located.append(Tokens(ids, labels, (int(place[0]), int(place[1]))))
    return located
