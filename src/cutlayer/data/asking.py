"""The way to ask a model: in the form in which it was trained, which the card of its adapter says.

A card's `template` is `plain` for the form of `data/tasks.py` (begin token where the tokenizer puts one, prompt, line
break), the text of a Jinja template, or another word for the tokenizer's own chat template; its `system` is what stands
before every question. A card without these keys leaves it to the tokenizer: its chat template where it has one, else
the plain form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cutlayer.data.chat import PLAIN, SEPARATOR, BadChat, Template
from cutlayer.data.tasks import begin_ids
from cutlayer.errors import DataError

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

        Raises:
          DataError: A turn holds what only the template may say, or the template refuses the turns.
        """
        template = tokenizer.chat_template if self.template is None else self.template
        if self.continues or template is None or template == PLAIN:
            asked = turns[-1]["content"] + ("" if self.continues else SEPARATOR)
            return [*begin_ids(tokenizer), *tokenizer(asked, add_special_tokens=False)["input_ids"]]
        if "{" not in template:
            template = tokenizer.get_chat_template()
        try:
            text = Template(template, tokenizer, self.system).asked([dict(turn) for turn in turns])
        except BadChat as error:
            raise DataError(f"prompt: {error}. Change it.") from error
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
