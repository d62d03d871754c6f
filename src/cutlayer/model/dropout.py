"""Dropout that is drawn from a named seed, so that who ran before changes nothing; and none, for a while."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def seeded_dropout(active: bool, *key: object) -> Iterator[None]:
    """A context in which torch's generator is seeded by `key`; afterwards the generator is as it was.

    torch's dropout takes no generator, so its global one is borrowed. The server seeds by device, round and step:
    its result then does not depend on the order in which it serves the devices.

    Args:
      active: False where nothing drops out; then nothing is done.
      key: What the draw depends on, such as seed, device, round, step, side.
    """
    if not active:
        yield
        return
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    # not torch.manual_seed: where there is no GPU it notes the stack each time, for a GPU that may come; half a
    # millisecond, twice a step
    generators = (torch.default_generator, *torch.cuda.default_generators)
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """A context in which the model runs without dropout and without graphs; afterwards it trains again, as parts do."""
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()
