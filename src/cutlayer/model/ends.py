"""The end of a text, where a decoder's classifier reads: told by the attention mask, never by a token id.

transformers looks for the last token that is not `config.pad_token_id`. Where texts may hold that token (a pad token
that is the end token, the unknown one, or simply 0), that is not the end, and a server, which has no token ids, cannot
look for it at all. Its forward stays as it is: among the logits of all tokens, those of each text's last one are put in
the place of all others, so that whichever transformers picks is the last.

Shapes: B batch, T tokens, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def read_the_last(model: Any, head: str) -> None:
    """Makes a decoder's classifier read each text's last token by the mask that its backbone was given.

    Args:
      model: A task model of transformers.
      head: The path in it of the module that makes the logits; one whose logits are not of tokens stays as it is.
    """
    seen: list[Tensor | None] = [None]

    def note(_backbone: nn.Module, _args: tuple[Any, ...], given: dict[str, Any]) -> None:
        seen[0] = given.get("attention_mask")

    def pick(_head: nn.Module, _args: tuple[Any, ...], logits_BTC: Tensor) -> Tensor:
        mask_BT, seen[0] = seen[0], None
        if logits_BTC.dim() != 3:
            return logits_BTC
        last_BC = logits_BTC[torch.arange(len(logits_BTC), device=logits_BTC.device), ends(logits_BTC, mask_BT)]
        return last_BC[:, None].expand(logits_BTC.shape)

    getattr(model, model.base_model_prefix).register_forward_pre_hook(note, with_kwargs=True)
    model.get_submodule(head).register_forward_hook(pick)


def ends(values_BTC: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The place of each text's last token, (B,), wherever it is filled up; the last of all where nothing is."""
    places_T = torch.arange(values_BTC.shape[1], device=values_BTC.device)
    if mask_BT is None:
        return places_T[-1:].expand(len(values_BTC))
    return (places_T * mask_BT.to(places_T.device, places_T.dtype)).argmax(-1)
