"""A question has the form that the card says; the plain one is what training on prompts and answers made."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cutlayer.data.asking import Form
from cutlayer.data.rows import Rows
from cutlayer.data.tasks import MASKED, CausalLM, Ragged
from cutlayer.testing.tiny import save_tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}n1{% endif %}"
)
ASKED = [{"role": "user", "content": "n3 n4"}]


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(save_tiny_tokenizer(tmp_path))
    return made


def words(tokenizer: PreTrainedTokenizerBase, form: Form) -> list[str]:
    found = tokenizer.convert_ids_to_tokens(form.token_ids(tokenizer, ASKED))
    assert isinstance(found, list)
    return found


def test_the_plain_form_is_what_was_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    task = CausalLM(prompt="q", answer="a", max_length=16, template="plain")
    samples = task.encode(Rows.of([{"q": "n3 n4", "a": "n7"}]), tokenizer)
    assert isinstance(samples.labels, Ragged)
    masked = samples.labels[0].count(MASKED)
    assert Form().token_ids(tokenizer, ASKED) == samples.input_ids[0][:masked]


def test_the_tokenizers_template_where_it_has_one_and_the_card_does_not_say_plain(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    plain = words(tokenizer, Form())
    tokenizer.chat_template = TEMPLATE
    assert words(tokenizer, Form()) == words(tokenizer, Form("chat")) == ["<unk>", "n3", "n4", "n1"]
    assert words(tokenizer, Form("plain")) == plain == ["n3", "n4"]
    assert words(tokenizer, Form("n9 {{ messages[0]['content'] }}")) == ["n9", "n3", "n4"]
    assert words(tokenizer, Form(system="good")) == ["<unk>", "good", "<unk>", "n3", "n4", "n1"]


def test_what_a_card_says() -> None:
    assert Form.of({"template": "chat", "system": "be good", "columns": {}}) == Form("chat", "be good")
    assert Form.of({"columns": {"text": "text"}}).continues
