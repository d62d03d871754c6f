"""Ways to make one vector of a sentence: an encoder's own pooler, the mean over tokens, or the first; a decoder's last.

Some checkpoints were trained with mean pooling and carry a pooler that never learned (MiniLM's output is about
0.05 and almost constant). `pooler` is still the default, because plain transformers and PEFT then load the result
without cutlayer; a pooler that never learned is re-initialised and trained along with the classifier.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from cutlayer.errors import ConfigError
from cutlayer.model.ends import read_the_last
from cutlayer.model.families import Family, Pooling

FRESH_POOLER_STD = 0.05
"""Standard deviation of a re-initialised pooler's weights: with MiniLM's hidden states, tanh is neither flat nor
saturated."""


def choose_pooling(asked: str, family: Family) -> Pooling:
    """The pooling to use: the one asked for, or the family's own for `auto`.

    Raises:
      ConfigError: The family cannot do what was asked.
    """
    if asked == "auto":
        return family.poolings[0]
    for known in family.poolings:
        if asked == known:
            return known
    raise ConfigError(
        f"model.pooling: expected auto or one of {', '.join(family.poolings)} for {family.name}, got {asked!r}. "
        "Change --pooling."
    )


def install_pooling(model: Any, family: Family, pooling: Pooling) -> None:
    """Makes a classifier read the pooling asked for: a decoder's the last token by the mask; else nothing is done for
    the family's own way."""
    if pooling == "last":
        read_the_last(model, family.head[-1])
    if pooling == family.poolings[0]:
        return
    backbone = getattr(model, model.base_model_prefix)
    if family.pooler is not None:
        setattr(backbone, family.pooler, None)

    def pool(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden_BTD = output.last_hidden_state
        mask_BT = kwargs.get("attention_mask")
        pooled_BD = hidden_BTD[:, 0] if pooling == "cls" else masked_mean(hidden_BTD, mask_BT)
        if family.pooler is not None:
            output.pooler_output = pooled_BD
        else:  # the head takes the first token, so there is only one
            output.last_hidden_state = pooled_BD[:, None, :]
        return output

    backbone.register_forward_hook(pool, with_kwargs=True)


def masked_mean(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """The mean over the tokens that are there, (B, D)."""
    if mask_BT is None:
        return hidden_BTD.mean(1)
    weight_BT1 = mask_BT[:, :, None].to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)
