"""Answers of a model with an adapter on it: greedy, or drawn by a seed. The part that evaluates generates too.

Shapes: B prompts, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from cutlayer.errors import DataError
from cutlayer.model.base import Base
from cutlayer.types import Adapter, Kept

GENERATION = "generation_config.json"


def generation_config(base: Base) -> Any:
    """The settings by which the base generates: those in its folder, else what its config says of special tokens."""
    if base.files.find(GENERATION) is not None:
        return GenerationConfig.from_pretrained(
            base.files.location, revision=base.files.revision, trust_remote_code=False
        )
    return GenerationConfig.from_model_config(base.config)


def end_ids(base: Base, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's end token, which training teaches, and those of the base."""
    known = generation_config(base).eos_token_id
    own = known if isinstance(known, list) else [known]
    return sorted({token for token in (*own, tokenizer.eos_token_id) if token is not None})


def check_known(base: Base, prompts: Iterable[Sequence[int]]) -> None:
    """Looks whether the model has a row for each token.

    Raises:
      DataError: It has not.
    """
    highest = max((max(ids, default=0) for ids in prompts), default=0)
    if highest >= base.vocabulary:
        raise DataError(
            f"prompt: expected token ids below {base.vocabulary}, the rows of the embeddings of model "
            f"{base.settings.name}, got {highest}. Leave the token out."
        )


@torch.inference_mode()
def generate(
    base: Base,
    adapter: Adapter,
    prompts: Sequence[Sequence[int]],
    *,
    ends: Sequence[int],
    new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    kept: Kept | None = None,
    streamer: Any = None,
) -> list[list[int]]:
    """The tokens that follow each prompt, without the one that ended them.

    Args:
      base: The model.
      adapter: Its full adapter, in its scale.
      prompts: Token ids; run together, filled up on the left.
      ends: The tokens that end an answer.
      new_tokens: At most so many.
      temperature: By which logits are divided before one is drawn; 0 takes the likeliest.
      seed: Of the draw; the process's own random numbers stay as they are.
      kept: Of a pruned model, what is left.
      streamer: Told of each token as it comes, of one prompt (transformers' `TextStreamer`).

    Raises:
      DataError: A prompt leaves no room for an answer, or has a token for which the model has no row.
    """
    check_known(base, prompts)
    longest = max(map(len, prompts))
    positions = getattr(base.config, "max_position_embeddings", None) or longest + new_tokens
    if longest >= positions:
        raise DataError(
            f"prompt: expected fewer than {positions} tokens, the positions of model {base.settings.name}, got "
            f"{longest}. Shorten it."
        )
    if kept is None:
        part = base.whole(base.blocks_in(adapter))
    else:
        part, adapter = base.pruned(kept, base.blocks_in(adapter)), base.structure.slice_all(adapter, kept)
    part.use(adapter)
    ids_BT = torch.tensor([[base.settings.pad_id] * (longest - len(ids)) + list(ids) for ids in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    config = GenerationConfig(
        max_new_tokens=min(new_tokens, positions - longest),
        do_sample=bool(temperature),
        eos_token_id=list(ends) or None,
        pad_token_id=base.settings.pad_id,
        use_cache=True,
        **drawn,
    )
    devices = [base.device] if base.device.type == "cuda" else []
    part.model.eval()
    try:
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            found = part.model.generate(  # type: ignore[operator]
                ids_BT.to(base.device),
                attention_mask=mask_BT.to(base.device),
                generation_config=config,
                streamer=streamer,
            )
    finally:
        part.model.train()
    return [_until(row, ends) for row in found[:, longest:].tolist()]


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the first that ends them."""
    place = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[:place]
