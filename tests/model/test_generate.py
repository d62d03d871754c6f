"""Greedy answers are transformers' own; prompts run together are answered as each alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.errors import DataError
from cutlayer.model.export import save_adapter
from cutlayer.model.generate import generate
from exported import card_for, plain_peft

ModelMaker = Callable[[str, str], Path]
PROMPTS = [[1, 9, 12, 33], [1, 40], [1, 5, 6]]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_is_what_plain_peft_says_and_together_as_alone(
    family: str, tiny_model: ModelMaker, tmp_path: Path
) -> None:
    base = open_base(tiny_model(family, "causal-lm"), "causal-lm")
    adapter = moved_adapter(base)
    save_adapter(tmp_path / "adapter", adapter, base, card_for(base))
    model = plain_peft(base, tmp_path / "adapter").eval()
    alone = [generate(base, adapter, [ids], ends=[2], new_tokens=6)[0] for ids in PROMPTS]
    for ids, answer in zip(PROMPTS, alone, strict=True):
        asked = torch.tensor([ids])
        theirs = model.generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=6, do_sample=False,
            eos_token_id=2, pad_token_id=0,
        )[0, len(ids) :].tolist()  # fmt: skip
        assert answer == (theirs[: theirs.index(2)] if 2 in theirs else theirs)
    assert generate(base, adapter, PROMPTS, ends=[2], new_tokens=6) == alone


def test_a_seed_gives_the_draw_and_nobody_elses_numbers_change(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    adapter, state = moved_adapter(base), torch.get_rng_state()

    def drawn(seed: int) -> list[int]:
        return generate(base, adapter, PROMPTS[:1], ends=[], new_tokens=12, temperature=1.5, seed=seed)[0]

    assert drawn(3) == drawn(3) != drawn(4)
    assert torch.equal(torch.get_rng_state(), state)
    assert base.whole().model.training


def test_a_prompt_without_room_for_an_answer(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    with pytest.raises(DataError, match="fewer than 64 tokens"):
        generate(base, moved_adapter(base), [[1] * 64], ends=[2], new_tokens=6)
    assert len(generate(base, moved_adapter(base), [[1] * 60], ends=[], new_tokens=6)[0]) == 4
