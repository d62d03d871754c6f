"""The README.md of what is exported: front matter that a hub reads, and what a person needs to load it.

Nothing of the machine goes into it: a base without a hub name is called by its fingerprint, data without one is
local data, and of the run file only what says how the model was trained is repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cutlayer.model.base import Base
from cutlayer.model.base_named import base_code, base_sentence
from cutlayer.model.card import AdapterCard
from cutlayer.model.export import POOLED, how_texts_end
from cutlayer.model.fingerprint import public_name
from cutlayer.model.portable import refused_by_vllm

PIPELINES = {"causal-lm": "text-generation", "classification": "text-classification"}
CLASSES = {"causal-lm": "AutoModelForCausalLM", "classification": "AutoModelForSequenceClassification"}
ADAPTER = """```python
from peft import PeftModel
from transformers import AutoTokenizer, {loader}
{base}
model = PeftModel.from_pretrained(base, FOLDER)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```
"""
MERGED = """```python
from transformers import pipeline

model = pipeline({pipeline!r}, model=FOLDER)
```
"""


@dataclass(frozen=True, slots=True)
class Training:
    """Facts on how an adapter came to be.

    Attributes:
      method: the method's name; empty where nobody knows.
      rounds: rounds of training in it.
      data: a hub name or a built-in one; empty for data of one's own.
      settings: the run file's keys that say how it was trained, by dotted key.
      metrics: of the adapter on held-out rows.
      kept: which round is exported, where the run keeps its best.
    """

    method: str = ""
    rounds: int | None = None
    data: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    kept: str = ""


def model_card(base: Base, card: AdapterCard, training: Training, *, title: str, merged: bool) -> str:
    """The text of README.md.

    Args:
      base: On which it was trained.
      card: What it was trained for.
      training: How.
      title: What it is called.
      merged: Whether it is a whole model, or an adapter.
    """
    task, named = card.task, public_name(base.files)
    hub_name = named if base.files.folder is None else None
    data = training.data or "data of one's own, which is not published"
    results = [
        EvalResult(
            task_type=PIPELINES[task],
            dataset_type=training.data or "local",
            dataset_name=data,
            metric_type=name,
            metric_value=round(value, 6),
        )
        for name, value in sorted(training.metrics.items())
        if name != "tokens"
    ]
    front = ModelCardData(
        base_model=hub_name,
        base_model_relation=None if hub_name is None else ("finetune" if merged else "adapter"),
        library_name="transformers" if merged else "peft",
        pipeline_tag=PIPELINES[task],
        tags=["cutlayer", "lora", *([training.method] if training.method else [])],
        datasets=[training.data] if "/" in training.data else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    lora = base.settings.lora
    rows = {
        "base model": f"`{named}`",
        "trained on": None if card.quantised is None else f"its weights rounded to {card.quantised}",
        "data": data,
        "method": f"`{training.method}` (cutlayer)" if training.method else "not known",
        "rounds": training.rounds,
        "exported": training.kept or None,
        **_asked(card),
        "LoRA": f"scale {lora.alpha / lora.rank:g}" + ("" if merged else ", one rank and one alpha for all modules"),
        **{f"`{key}`": f"`{value}`" for key, value in training.settings.items()},
        **{name: f"{value:.6g}" for name, value in sorted(training.metrics.items()) if name != "tokens"},
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items() if value is not None)
    code = base_code(base.files, CLASSES[task], len(card.labels))
    how = (MERGED if merged else ADAPTER).format(
        loader=CLASSES[task], base=code if code.startswith("from") else f"\n{code}", pipeline=PIPELINES[task]
    )
    notes = [*([] if merged else [base_sentence(base.files), refused_by_vllm(base)]), *how_texts_end(base)]
    if task == "classification" and base.pooling != base.family.poolings[0]:
        notes.append(POOLED.format(pooling=base.pooling))
    said = "".join(f"\nNote: {note[0].upper()}{note[1:].rstrip('.')}.\n" for note in notes if note)
    what = "A model" if merged else "A LoRA adapter"
    return (
        f"---\n{front.to_yaml()}\n---\n\n# {title}\n\n{what} made by cutlayer.\n\n"
        f"| | |\n|---|---|\n{table}\n## How to load it\n\n{how}{said}"
    )


def _asked(card: AdapterCard) -> dict[str, str | None]:
    """Rows on the form in which the adapter was trained to be asked: other forms cost."""
    if card.template is None:
        return {}
    plain = f"the prompt and `{json.dumps(card.separator)}`, without a chat template"
    return {
        "asked by": "the chat template beside it (`chat_template.jinja`)" if card.separator is None else plain,
        "system turn": None if card.system is None else f"`{json.dumps(card.system, ensure_ascii=False)}`",
    }
