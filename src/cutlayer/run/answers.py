"""Answers of a run's model at an evaluation: to prompts of `train.samples`, and to held-out ones for `train.metrics`.

A held-out row is asked by all of its tokens before the last stretch that the loss was on, and that stretch is what is
expected: so it is whatever form its prompt was written in, and in a chat its last answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cutlayer.data.asking import Form
from cutlayer.data.tasks import MASKED, Ragged, Samples
from cutlayer.errors import ConfigError
from cutlayer.model.base import Base
from cutlayer.model.generate import check_known, end_ids, generate
from cutlayer.report.stage import TellStage, untold
from cutlayer.report.text_metrics import Judge, judges
from cutlayer.run.inputs import ServerInputs
from cutlayer.settings import load_tokenizer
from cutlayer.types import Adapter, Kept

AT_ONCE = 16
"""Prompts that are answered together."""


@dataclass(frozen=True)
class Answers:
    """Asks the model.

    Attributes:
      base: the model.
      tokenizer: the model's.
      prompts: of `train.samples`, with their token ids.
      asked: token ids of held-out prompts, each with the text that is expected.
      judges: what answers to these are judged by.
      new_tokens: the longest answer.
    """

    base: Base
    tokenizer: Any
    prompts: Mapping[str, list[int]]
    asked: Sequence[tuple[list[int], str]]
    judges: Mapping[str, Judge]
    new_tokens: int

    def samples(self, adapter: Adapter, kept: Kept | None = None, told: TellStage = untold) -> list[dict[str, Any]]:
        """The answers of the model to `train.samples`: each prompt and text."""
        texts = self._texts("answering samples", list(self.prompts.values()), adapter, kept, told)
        return [{"prompt": prompt, "text": text} for prompt, text in zip(self.prompts, texts, strict=True)]

    def judged(self, adapter: Adapter, kept: Kept | None = None, told: TellStage = untold) -> dict[str, float]:
        """The metrics of answers to held-out prompts, by name."""
        if not self.judges or not self.asked:
            return {}
        texts = self._texts("answering held-out prompts", [ids for ids, _ in self.asked], adapter, kept, told)
        expected = [text for _, text in self.asked]
        return {name: judge(texts, expected) for name, judge in self.judges.items()}

    def _texts(
        self, what: str, prompts: Sequence[list[int]], adapter: Adapter, kept: Kept | None, told: TellStage
    ) -> list[str]:
        ends, found = end_ids(self.base, self.tokenizer), list[list[int]]()
        for first in range(0, len(prompts), AT_ONCE):
            together = prompts[first : first + AT_ONCE]
            told(what, first, len(prompts))
            found += generate(self.base, adapter, together, ends=ends, new_tokens=self.new_tokens, kept=kept)
            told(what, first + len(together), len(prompts))
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in found]


def answers_of(inputs: ServerInputs) -> Answers | None:
    """The prompts that a run is to answer, with the model that answers; None for no prompts.

    Raises:
      ConfigError: It is no causal LM, its rows have no prompts, or a metric's package is not installed.
    """
    train = inputs.config.train
    if not train.samples and not train.metrics:
        return None
    if inputs.config.data.task != "causal-lm":
        raise ConfigError(
            "train.samples and train.metrics: expected none for classification, which writes no text, got "
            f"{len(train.samples)} and {len(train.metrics)}. Leave them out, or set --task causal-lm."
        )
    tokenizer = load_tokenizer(inputs.base.files)
    form = Form.of(asdict(inputs.card))
    prompts = {
        prompt: form.token_ids(tokenizer, [{"role": "user", "content": prompt}])
        for prompt in dict.fromkeys(train.samples)
    }
    check_known(inputs.base, prompts.values())
    asked: list[tuple[list[int], str]] = []
    if train.metrics:
        if not len(inputs.validation):
            raise ConfigError(
                "train.metrics: expected a server with held-out rows of its own, got none: devices judge by theirs, "
                "and write no text. Add validation.*, or leave train.metrics out."
            )
        rows = list(_asked(inputs.validation))
        if not rows:
            raise ConfigError(
                "train.metrics: expected held-out rows with a prompt and an answer, got plain text. Name the columns "
                "with --prompt and --answer, or leave train.metrics out."
            )
        chosen = sorted(random.Random(train.seed).sample(range(len(rows)), min(train.metric_rows, len(rows))))
        asked = [(rows[row][0], tokenizer.decode(rows[row][1], skip_special_tokens=True).strip()) for row in chosen]
    known = judges(train.metrics, train.answer_pattern)
    return Answers(inputs.base, tokenizer, prompts, asked, known, train.new_tokens)


def _asked(samples: Samples) -> Iterator[tuple[list[int], list[int]]]:
    """The tokens of each sample with a prompt: those before the last stretch that is learnt, and that stretch."""
    assert isinstance(samples.labels, Ragged), "of causal LM"
    for row in range(len(samples)):
        ids, labels = samples.input_ids[row], samples.labels[row]
        end = len(labels)
        while labels[end - 1] == MASKED:
            end -= 1
        first = end
        while first and labels[first - 1] != MASKED:
            first -= 1
        if first:
            yield ids[:first], ids[first:end]
