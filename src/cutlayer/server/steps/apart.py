"""A step on what several devices sent together, and whose part is to blame where it diverges.

A batch of all devices has one loss: if that is not finite, each device's own part is tried by itself, and those whose
part diverges alone are taken out of the round; the others are trained on as if they had come without them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from cutlayer.errors import DivergedError
from cutlayer.server.engine import Span
from cutlayer.server.owners import SHARED
from cutlayer.server.server import Server
from cutlayer.wire.messages import Activations

T = TypeVar("T")


async def train_apart(
    server: Server,
    arrived: Sequence[Activations],
    span: Span,
    training: Callable[[Sequence[Activations]], Awaitable[T]],
) -> tuple[list[Activations], T | None]:
    """Trains on all of it, or on what is left without those whose part diverges alone.

    Args:
      server: The server.
      arrived: What devices sent, or samples of it.
      span: Through which it passes.
      training: One step of the adapter that all share; it leaves that as it is where it diverges.

    Returns:
      What was trained on, and what came of that; None of nothing.

    Raises:
      DivergedError: No part diverges alone, or nobody may leave: it is the run that diverged.
    """
    try:
        return list(arrived), await training(arrived)
    except DivergedError:
        if not server.may_blame:
            raise
        guilty = await server.machine.aside(lambda: _guilty(server, arrived, span))
        if not guilty:
            raise
    for error in guilty.values():
        server.blame(error)
    rest = [part for part in arrived if part.device not in guilty]
    return rest, await training(rest) if rest else None


def _guilty(server: Server, arrived: Sequence[Activations], span: Span) -> dict[str, DivergedError]:
    """The errors of those whose part diverges alone, by device; gradients that were found are forgotten."""
    engine, parameters = server.engine, server.adapters.trainable(SHARED).parameters
    found: dict[str, DivergedError] = {}
    for part in arrived:
        batch = replace(part, h_BTD=part.h_BTD.to(server.base.device))
        try:
            graph = engine.loss(SHARED, span, batch)
            engine.check_finite(graph.value, part.device, part.round, part.step)
            engine.check_gradients(parameters, graph.back(), part.device, part.round, part.step)
        except DivergedError as error:
            found.setdefault(part.device, error)
        for parameter in parameters.values():
            parameter.grad = None
    return found
