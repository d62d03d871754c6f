"""Everything that can be wrong with a message, field by field: made from the message itself, whatever its kind.

A test sends each to whoever should refuse it. What another honest device could have sent just as well is left out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cutlayer.types import Adapter
from cutlayer.wire.frames import DTYPES
from cutlayer.wire.messages import Activations, HiddenGradients, Judged, Measured, Message, Recall, Update

Wrong = tuple[str, Message]
"""A word for what is wrong, and the message."""


def wrongs(message: Message) -> Iterator[Wrong]:
    """Each wrong value of each field, one at a time."""
    for field in dataclasses.fields(message):
        for what, value in others(getattr(message, field.name)):
            label = f"{field.name}: {what}"
            if not honest(message, label):
                yield label, dataclasses.replace(message, **{field.name: value})
    if isinstance(message, Activations):
        yield "one sample more of everything", larger(message)


def honest(message: Message, label: str) -> bool:
    """Whether this may be so, or is no matter of the round: a message of an earlier one is late."""
    free = {"round: one less", "round: below 0"}
    if isinstance(message, Activations):  # who else knows how many rows a device has
        free |= {"rows_B: highest first", "rows_B: highest last"}
    if isinstance(message, HiddenGradients):  # training may have diverged
        free |= {"loss: nan", "loss: inf", "loss: -inf"}
    if isinstance(message, Judged) and message.loss:  # training may have diverged
        free |= {"loss: nan", "loss: inf", "loss: -inf"}
    if isinstance(message, Judged) and not message.counts_3C.numel():  # who else knows what a device holds out
        free |= {"samples: one less", "samples: one more", "weight: one less", "weight: one more"}
    if isinstance(message, Recall):
        free |= {"rows_B: one less", "num_tokens: one less", "num_tokens: one more"}
    if isinstance(message, Measured):
        free |= {"events_E6: one less", "events_E6: one more", "events_E6: none"}
    if (
        isinstance(message, Update) and message.steps
    ):  # it trained alone: it may have diverged, and weights of tokens vary
        free |= {"loss: nan", "loss: inf", "loss: -inf", "samples: one less", "weight: one less", "weight: one more"}
    if isinstance(message, Update) and re.fullmatch(r"adapter: .*: (lowest|highest) (first|last)", label):
        return True  # packed: other bytes are another adapter
    return label in free


def others(value: Any) -> Iterator[tuple[str, Any]]:
    """Wrong values in place of one."""
    if isinstance(value, str):
        yield from (("another", "other"), ("longer", f"{value}x"), ("none", ""))
    elif isinstance(value, int):
        yield from (("one more", value + 1), ("one less", value - 1), ("below 0", -1), ("huge", 2**63))
    elif isinstance(value, float):
        yield from (("nan", torch.nan), ("inf", torch.inf), ("-inf", -torch.inf), ("below 0", -1.0))
    elif isinstance(value, tuple):
        yield from (("unknown", (*value[:-1], "shell")), ("twice", value + value[:1]), ("none", ()))
    elif value is None:
        yield "something", torch.zeros(1)
        yield "as many as there are samples", torch.arange(4, dtype=torch.int32)
    elif isinstance(value, Tensor):
        yield from tensors(value)
    else:
        yield from adapters(value)


def adapters(adapter: Adapter) -> Iterator[tuple[str, Adapter]]:
    """Wrong tensors by name: one missing, one too many, and each wrong in itself."""
    yield "one more name", {**adapter, "another": torch.zeros(2)}
    yield "an empty one more", {**adapter, "another": torch.zeros(0)}
    if adapter:
        yield "none", {}
    for name, tensor in some(adapter).items():
        yield f"without {name}", {other: value for other, value in adapter.items() if other != name}
        yield f"{name} by another name", {f"{other}x" if other == name else other: v for other, v in adapter.items()}
        for what, value in tensors(tensor):
            yield f"{name}: {what}", {**adapter, name: value}


def some(adapter: Adapter) -> Adapter:
    """The tensors of a large adapter that stand for others: the first and the last of each number of dimensions."""
    if len(adapter) <= 16:
        return adapter
    names = [[name for name, tensor in adapter.items() if tensor.dim() == dims] for dims in range(4)]
    return {name: adapter[name] for group in names if group for name in (group[0], group[-1])}


def tensors(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Wrong tensors in place of one: of other dtypes and shapes, and with a wrong element at either end."""
    for name, dtype in DTYPES.items():
        if dtype != tensor.dtype:
            yield name, tensor.to(dtype)
    yield "one dimension more", tensor[None]
    yield "one dimension more at its end", tensor[..., None]
    if tensor.dim():
        yield "one dimension less", tensor[0]
        yield "one more", torch.cat([tensor, tensor[:1]])
        yield "one less", tensor[1:]
        yield "none", tensor[:0]
    if tensor.dim() > 1 and tensor.shape[-1]:
        yield "flat", tensor.flatten()
        yield "wider", torch.cat([tensor, tensor[..., :1]], -1)
    for at, where in ((0, "first"), (-1, "last")) if tensor.numel() else ():
        for what, element in wrong_elements(tensor):
            copy = tensor.clone()
            copy.view(-1)[at] = element
            if not torch.equal(copy, tensor):
                yield f"{what} {where}", copy


def wrong_elements(tensor: Tensor) -> list[tuple[str, float | int | bool]]:
    """Values that an element must not have, whatever the tensor is for."""
    if tensor.is_floating_point():
        return [("nan", torch.nan), ("inf", torch.inf), ("-inf", -torch.inf)]
    if tensor.dtype is torch.bool:
        return [("false", False)] if tensor.numel() > 1 else []
    return [("lowest", torch.iinfo(tensor.dtype).min), ("highest", torch.iinfo(tensor.dtype).max)]


def larger(batch: Activations) -> Activations:
    """A batch with its first sample once more, and true to itself."""
    one_each = batch.labels is None or batch.labels.dim() == 1
    weight = 1 if one_each else int((batch.targets[0, 1:] != -100).sum())
    again = {
        name: torch.cat([value, value[:1]])
        for name in ("h_BTD", "mask_BT", "labels", "rows_B")
        if (value := getattr(batch, name)) is not None
    }
    return dataclasses.replace(batch, weight=batch.weight + weight, **again)
