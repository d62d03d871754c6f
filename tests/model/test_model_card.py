"""The card has front matter that a hub reads, and nothing of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from bases import open_base
from cutlayer.model.model_card import Training, model_card
from exported import card_for

ModelMaker = Callable[[str, str], Path]
TRAINING = Training("memsfl", 3, "org/data", {"train.lr": 0.1}, {"loss": 0.5, "tokens": 7}, "the best round by loss")


@pytest.mark.parametrize("merged", [True, False])
def test_the_front_matter(merged: bool, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    text = model_card(base, card_for(base), TRAINING, title="mine", merged=merged)
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.datasets) == (
        "transformers" if merged else "peft",
        "text-generation",
        ["org/data"],
    )
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [("loss", 0.5)]
    assert "memsfl" in data.tags
    assert str(Path(base.settings.name).parent) not in text
    assert "fingerprint:" in text
    assert ("pipeline(" in text) == merged
    assert "best round by loss" in text


def test_a_classifier_says_what_vllm_and_transformers_cannot(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", pooling="mean")
    text = model_card(base, card_for(base), Training(), title="mine", merged=False)
    assert "modules_to_save" in text
    assert "load_finetuned" in text
    assert "num_labels=3" in text


def test_it_says_how_to_ask(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")

    def text(**form: str) -> str:
        return model_card(base, replace(card_for(base), **form), Training(), title="mine", merged=False)

    assert "asked by" not in text()
    chats = text(template="{{ messages }}", system="Be\nbrief.")
    assert "| asked by | the chat template beside it (`chat_template.jinja`) |" in chats
    assert '| system turn | `"Be\\nbrief."` |' in chats
    assert '| asked by | the prompt and `"\\n"`, without a chat template |' in text(template="plain", separator="\n")
