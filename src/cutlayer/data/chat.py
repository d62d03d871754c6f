"""Chats: from turns to the text that a model's own template makes of them, and the parts of it that are learned.

A template (Jinja, the tokenizer's or a file's) writes roles and turns as the model has always read them. Learned are
the assistant's turns, each with the token that ends it: what stands between the template's `{% generation %}` marks
where it has them; else what the template writes of a turn after all that it writes to ask for it, which must be the
beginning of the whole (docs/decisions/0037). A template for which this does not hold is refused, not trained wrongly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import TemplateError

from cutlayer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = "plain"
"""The template of those who want none: prompt, `SEPARATOR`, answer, end token."""

SEPARATOR = "\n"
"""Stands between prompt and answer in the plain form; it belongs to the prompt and is masked with it."""

TODAY = date(2024, 7, 26)
"""The day that a template is told, which Llama 3.1 falls back on too: a run of tomorrow must be the run of today."""

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""ShareGPT's `from` by the role that templates know."""

USUAL = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
"""Roles that a template may be given. Another one must be named by it: many templates write whatever they are given,
and an answer whose role is misspelt would be read and never learned."""

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]{2,}\]")

Message = dict[str, Any]

Cell = TypeVar("Cell")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Chat:
    """The turns of one row.

    Attributes:
      messages: with `role` and `content`, and what else a template knows, such as `tool_calls`.
      learned_from: the turns before this one are only read, the assistant's among them too.
    """

    messages: list[Message]
    learned_from: int = 0

    @property
    def learned(self) -> list[int]:
        """Positions of the turns that are learned."""
        turns = enumerate(self.messages)
        return [at for at, message in turns if at >= self.learned_from and message["role"] == "assistant"]

    @property
    def is_silent(self) -> bool:
        """Whether a turn that is learned says nothing, and calls no tool."""
        turns = [self.messages[at] for at in self.learned]
        return any(not turn.get("content", "").strip() and "tool_calls" not in turn for turn in turns)

    @property
    def exchanges(self) -> list[int]:
        """Positions at which exchanges begin: the user's turns before the last answer that is learned."""
        last = self.learned[-1]
        return [at for at, message in enumerate(self.messages[:last]) if message["role"] == "user"]

    def without(self, exchanges: int) -> Chat:
        """This chat without its oldest exchanges; a system turn at its head stays."""
        if exchanges == 0:
            return self
        start = self.exchanges[exchanges]
        head = [message for message in self.messages[:1] if message["role"] == "system"]
        return Chat([*head, *self.messages[start:]], max(0, self.learned_from - start) + len(head))

    def saying(self, at: int, words: str) -> Chat:
        """This chat with other words in one turn."""
        return replace(
            self, messages=[*self.messages[:at], {**self.messages[at], "content": words}, *self.messages[at + 1 :]]
        )


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as text.

    Attributes:
      text: with all special tokens, as `apply_chat_template` gives it.
      learned: where what is learned begins and ends, in characters, in order.
    """

    text: str
    learned: tuple[tuple[int, int], ...]


class BadChat(ValueError):
    """An error in one chat: expected what, got what; whoever knows the row says where and what to change."""


def is_template(text: str) -> bool:
    """Whether this is a template itself, and neither the name of one nor a file's.

    Example:
      >>> is_template("chat.jinja"), is_template("{{ messages[0].content }}")
      (False, True)
    """
    return "{{" in text or "{%" in text


def chat_of(cell: object) -> Chat:
    """The turns in a cell of a `messages` or `conversations` column.

    Args:
      cell: a list of `{"role", "content"}` (OpenAI) or of `{"from", "value"}` (ShareGPT), or such a list as JSON text.

    Raises:
      BadChat: it is none, a role is unknown to ShareGPT, or the assistant has no turn.

    Example:
      >>> chat_of([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]).messages
      [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]
    """
    chat = Chat(messages_of(cell))
    if not chat.learned:
        roles = ", ".join(message["role"] for message in chat.messages)
        raise BadChat(f"expected a turn of the assistant's to learn, got only {roles}")
    return chat


def messages_of(cell: object) -> list[Message]:
    """The turns in a cell, whoever's they are; raises BadChat."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            raise BadChat("expected a list of turns, got a text that is no JSON") from None
    if isinstance(cell, Mapping):  # of lists, which some Parquet files have in place of a list of structs
        lists = {name: values for name, values in cell.items() if isinstance(values, list)}
        cell = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if not isinstance(cell, Sequence) or len(cell) == 0:
        raise BadChat(f"expected a list of turns, got {'no turns' if cell == [] else _name(cell)}")
    return [_message(at, turn) for at, turn in enumerate(cell)]


def exchange(prompt: object, answer: object) -> Chat:
    """The chat of a prompt and an answer, each a text or a list of turns; raises BadChat."""
    asked, answered = _side("user", "prompt", prompt), _side("assistant", "answer", answer)
    chat = Chat([*asked, *answered], len(asked))
    if not chat.learned:
        raise BadChat("expected a turn of the assistant's as the answer, got none")
    return chat


def _side(role: str, what: str, cell: object) -> list[Message]:
    """The turns of a prompt or an answer; a whole number is its digits, as in the plain form."""
    if isinstance(cell, int) and not isinstance(cell, bool):
        cell = str(cell)
    if isinstance(cell, str):
        return [_said(role, cell)]
    if not isinstance(cell, Mapping | Sequence):
        raise BadChat(f"expected a text or a list of turns as the {what}, got {_name(cell)}")
    return messages_of(cell)


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _name(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _message(at: int, turn: object) -> Message:
    """A turn in the form of OpenAI, without what is null: Parquet has every key in every turn."""
    if not isinstance(turn, Mapping):
        raise BadChat(f"turn {at}: expected role and content, got {_name(turn)}")
    message = {str(key): value for key, value in turn.items() if value is not None}
    if "from" in message and "role" not in message:
        message = {"role": message.pop("from"), "content": message.pop("value", None), **message}
        role = ROLES.get(str(message["role"]))
        if role is None:
            raise BadChat(f"turn {at}: expected one of {', '.join(ROLES)}, got from {message['role']!r}")
        message["role"] = role
    if not isinstance(message.get("role"), str):
        raise BadChat(f"turn {at}: expected role and content, got only {', '.join(message) or 'nothing'}")
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_text(at, part) for part in content)
    elif not isinstance(content, str) and (content is not None or "tool_calls" not in message):
        raise BadChat(f"turn {at}: expected content that is text, got {_name(content)}")
    return message


def _text(at: int, part: object) -> str:
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise BadChat(f"turn {at}: expected content that is text, got a part of another kind")
    return text


@lru_cache(maxsize=8)
def _of_one_day(template: str) -> str:
    """The template with `TODAY` for the clock."""
    return _CLOCK.sub(lambda call: json.dumps(TODAY.strftime(call[2])), template)


class Template:
    """A chat template, and the text that a chat becomes by it.

    Args:
      text: The Jinja template.
      tokenizer: Whose special tokens the template names.
      system: Said first where a chat has no system turn; None for nothing.

    Raises:
      ConfigError: The text is no template, or cannot show a question and an answer.

    Attributes:
      markers: What the template writes around turns and no turn may say: it would begin or end one.
      marked: Whether the template marks what the assistant says.
    """

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> None:
        self.system = system
        self.marked = _MARKS.search(text) is not None
        self._text, self._special = _of_one_day(text), dict(tokenizer.special_tokens_map)
        added = [*tokenizer.get_added_vocab()]
        special = {str(token) for token in tokenizer.all_special_tokens}
        special |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        probe = Chat([_said("user", "0"), _said("assistant", "0"), _said("user", "0"), _said("assistant", "0")])
        try:
            frame = self._frame(probe)
            before, between = (len(self._around(probe, at)[0]) for at in (1, 2))
            whole, after = self._render(probe.messages), self._around(probe, 3)[1]
        except (TemplateError, TypeError, ValueError) as error:
            raise ConfigError(
                "data.template: expected a chat template that shows questions and answers, got one that says: "
                f"{_first_line(error)}. Name another file, or say --template plain."
            ) from error
        self.markers = tuple(dict.fromkeys([*(t for t in added if t in frame), *_MARKER.findall(frame)]))
        ends = sorted((after.find(token), token) for token in added if token in after)
        self._end = ends[0][1] if ends else None
        """The end of the assistant's turn: the first token of the vocabulary's own behind it."""
        self._every_turn_ends = self._end is not None and self._end in whole[before:between]
        self._closers = tuple(t for t in self.markers if t in special or t == self._end)

    def rendered(self, chat: Chat) -> Rendered:
        """The text of a chat, and what of it is learned.

        Raises:
          BadChat: The template refuses the chat or writes its turns otherwise when more follow, or a turn holds what
            only the template may say.
        """
        chat = self.complete(chat)
        try:
            return self._marked_by_template(chat) if self.marked else self._by_prefixes(chat)
        except (TemplateError, TypeError) as error:
            raise BadChat(f"expected turns that the template takes, got its {_first_line(error)!r}") from error

    def asked(self, turns: Sequence[Message]) -> str:
        """The text after which the assistant answers the last of these turns; raises BadChat as `rendered`."""
        messages = self.complete(Chat(list(turns))).messages
        try:
            return self._render(messages, asking=True)
        except (TemplateError, TypeError) as error:
            raise BadChat(f"expected turns that the template takes, got its {_first_line(error)!r}") from error

    def complete(self, chat: Chat) -> Chat:
        """The chat with the system's turn, each turn looked at; raises BadChat."""
        if self.system is not None and chat.messages[0]["role"] != "system":
            chat = Chat([_said("system", self.system), *chat.messages], chat.learned_from + 1)
        for at, message in enumerate(chat.messages):
            self._check_role(at, message["role"])
            own = self._closers if message["role"] == "assistant" else self.markers
            found = next((marker for marker in own if marker in message.get("content", "")), None)
            if found is not None:
                raise BadChat(
                    f"turn {at} ({message['role']}): expected words without the template's own tokens, got {found!r}"
                )
        return chat

    def _check_role(self, at: int, role: str) -> None:
        if role not in USUAL and not any(f"{quote}{role}{quote}" in self._text for quote in "'\""):
            known = ", ".join(sorted(USUAL))
            raise BadChat(f"turn {at}: expected a role of {known}, or one that the template names, got {role!r}")

    def words(self, chat: Chat, rendered: Rendered) -> tuple[int, int]:
        """The place of the user's words before the last answer in the text, in characters; an empty place for nowhere.

        Args:
          chat: Complete, with one exchange.
          rendered: What became of it.
        """
        head, tail = self._around(chat, chat.exchanges[-1]) if chat.exchanges else ("", rendered.text)
        end = len(rendered.text) - len(tail)
        regular = rendered.text.startswith(head) and rendered.text.endswith(tail) and end >= len(head)
        return (len(head), end) if regular else (0, 0)

    def _frame(self, probe: Chat) -> str:
        """All that the template writes beside what is said; with a system's turn where it takes one."""
        plain = self._render(probe.messages)
        try:
            return plain + self._render([_said("system", "0"), *probe.messages])
        except TemplateError:
            return plain

    def _around(self, chat: Chat, at: int) -> tuple[str, str]:
        """The text before and after what is said in a turn, whatever is said."""
        one, other = (self._render(chat.saying(at, words).messages) for words in ("1", "2"))
        same, behind = _alike(one, other), _alike(one[::-1], other[::-1])
        return one[:same], one[len(one) - behind :]

    def _render(self, messages: Sequence[Message], *, asking: bool = False) -> str:
        return self._render_with_marks(messages, asking=asking, marks=False)[0]

    def _render_with_marks(
        self, messages: Sequence[Message], *, asking: bool = False, marks: bool = True
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        if not messages:
            return "", []
        texts, places = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self._text,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=asking,
            date_string=TODAY.strftime("%d %b %Y"),
            **self._special,
        )
        return texts[0], places[0] if marks else []

    def _marked_by_template(self, chat: Chat) -> Rendered:
        text, places = self._render_with_marks(chat.messages)
        read = len(self._render(chat.messages[: chat.learned_from], asking=True)) if chat.learned_from else 0
        learned = tuple((start, end) for start, end in places if end > start and end > read)
        if not learned:
            raise BadChat("expected something to learn, got no text between the template's generation marks")
        return Rendered(text, learned)

    def _by_prefixes(self, chat: Chat) -> Rendered:
        text, learned = self._render(chat.messages), list[tuple[int, int]]()
        for at in chat.learned:
            asked = self._render(chat.messages[:at], asking=True)
            if not text.startswith(asked) or (learned and len(asked) < learned[-1][1]):
                same = _alike(text, asked)
                raise BadChat(
                    f"turn {at}: expected a template that writes what stands before an answer as it asks for it, "
                    f"got {text[same : same + 24]!r} for {asked[same : same + 24]!r}"
                )
            learned.append((len(asked), self._end_of(chat, at, text, len(asked))))
        if not any(end > start for start, end in learned):
            raise BadChat("expected something to learn, got nothing in the assistant's turns")
        return Rendered(text, tuple(learned))

    def _end_of(self, chat: Chat, at: int, text: str, start: int) -> int:
        """The end of the assistant's turn: behind its end token where there is one, else where the template ends it."""
        if self._end is not None and self._every_turn_ends:
            found = text.find(self._end, start)
            return found + len(self._end) if found >= 0 else len(text)
        written = self._render(chat.messages[: at + 1])
        if self._end is not None and not text.startswith(written) and written.find(self._end, start) >= 0:
            written = written[: written.find(self._end, start)]  # some templates end the last turn alone
        if not text.startswith(written):
            raise BadChat(f"turn {at}: expected a template that keeps answers as they are when turns follow, got other")
        found = -1 if self._end is None else written.find(self._end, start)
        return len(written) if found < 0 or self._end is None else found + len(self._end)


def template_of(template: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the template that a run uses, or `plain`.

    Args:
      template: `plain`, the text of one, or None for the tokenizer's own.
      tokenizer: The model's.

    Raises:
      ConfigError: The tokenizer has none.
    """
    if template is not None:
        return template
    if tokenizer.chat_template is None:
        raise ConfigError(
            "data.template: expected a model with a chat template, got a tokenizer without one. Say --template plain "
            "(prompt, line break, answer), or name a file: --template FILE.jinja."
        )
    own: str = tokenizer.get_chat_template()
    return own


def by_row(
    what: Callable[[Cell], Made], cells: Iterable[Cell], where: str, column: str, number: Callable[[int], int]
) -> list[Made]:
    """Applies `what` to each row's cell.

    Args:
      what: Makes it; raises BadChat.
      cells: Of the rows.
      where: Names them in errors.
      column: Whose they are.
      number: Of a row in its file.

    Raises:
      DataError: A row is no chat.
    """
    chats = []
    for row, cell in enumerate(cells):
        try:
            chats.append(what(cell))
        except BadChat as error:
            raise bad_row(where, number(row), column, error) from error
    return chats


def bad_row(where: str, row: int, column: str, error: BadChat) -> DataError:
    """The error that says what is wrong with a chat, and where it is."""
    return DataError(f"{where}, row {row} (from 0), column {column!r}: {error}. Correct or remove the row.")


def _alike(one: str, other: str) -> int:
    """The length of the common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (mine, its) in pairs if mine != its), min(len(one), len(other)))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
