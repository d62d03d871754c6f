"""How a model is asked: in the form in which it was trained, which the card of its adapter says.

A card's `template` is `plain` for the form of `data/tasks.py` (begin token, prompt, line break), the text of a Jinja
template, or another word for the tokenizer's own chat template; its `system` is what stands before every question. A
card without these keys leaves it to the tokenizer: its chat template where it has one, else the plain form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cutlayer.data.tasks import SEPARATOR

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = Mapping[str, str]
"""`role` (user, assistant) and `content`."""


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a question.

    Attributes:
      template: see above; None where nobody says.
      system: what the model is told before the first turn.
      continues: whether it was trained on plain text, which it goes on with.
    """

    template: str | None = None
    system: str | None = None
    continues: bool = False

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> Form:
        """The form that a card says, read as JSON.

        Example:
          >>> Form.of({"columns": {"prompt": "question"}, "template": "plain"})
          Form(template='plain', system=None, continues=False)
        """
        return cls(card.get("template"), card.get("system"), "text" in card.get("columns", {}))

    def token_ids(self, tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> list[int]:
        """The tokens after which the model answers.

        Args:
          tokenizer: The model's.
          turns: So far, the last of them the user's. The plain form knows of the last alone.
        """
        template = tokenizer.chat_template if self.template is None else self.template
        if self.continues or template is None or template == "plain":
            begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            asked = turns[-1]["content"] + ("" if self.continues else SEPARATOR)
            return [*begin, *tokenizer(asked, add_special_tokens=False)["input_ids"]]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        own = {"chat_template": template} if "{" in template else {}
        text = tokenizer.apply_chat_template(
            [*system, *map(dict, turns)], tokenize=False, add_generation_prompt=True, **own
        )
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
