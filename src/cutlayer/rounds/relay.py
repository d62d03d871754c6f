"""The relay: one device after another; each goes on from what the one before it trained.

    for device in cohort:  an up-and-down round with this device alone; its adapter goes to the next

No averaging happens: the round's one contribution is where the last device left off. What a device that leaves has
trained is forgotten: the next goes on from where the one before it left off. So it is with a device that has left an
adapter with which the model does not run (`server/found_out.py`); it is looked for at the first turn of a round, and
where an adapter has moved far more than at the turns before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median_low

from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.labels import labels_stay
from cutlayer.policies.order import fifo
from cutlayer.policies.robust import norm
from cutlayer.rounds.round import Round
from cutlayer.rounds.split import split
from cutlayer.rounds.u_shape import u_shape
from cutlayer.server.contributions import FAR
from cutlayer.server.found_out import found_out, further, poisoned
from cutlayer.server.owners import one_for_all
from cutlayer.server.server import Server
from cutlayer.server.steps.halves import in_halves
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time
from cutlayer.state import State
from cutlayer.types import Adapter, Costs, RoundPlan
from cutlayer.wire.link import Link


def relay(*, labels: str = "server") -> Round:
    """Builds the relay.

    Args:
      labels: Where they are, and so the shape of each device's turn: `server`, up-and-down; `device`, the U-shape.

    Example:
      >>> from cutlayer import relay
      >>> round = relay()
      >>> round.together, round.divisible
      (True, False)
      >>> relay(labels="device").shape.name
      'u-shape'
    """
    if labels_stay(labels):
        return _Relay(u_shape(server_step=in_halves(fifo(), owner=one_for_all)), cuts_batches=False)
    return _Relay(split(server_step=one_device_at_a_time(fifo(), owner=one_for_all)), cuts_batches=True)


class _Relay:
    equal_cuts = keeps_activations = divisible = False
    together = True
    one_result = True  # of all devices, one after the other

    def __init__(self, turn: Round, *, cuts_batches: bool) -> None:
        self._turn, self.cuts_batches = turn, cuts_batches
        self.shape, self.script = turn.shape, turn.script

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        broadcast = server.adapter
        anybody, lengths = False, list[float]()  # of strangers' changes that count
        for device in plan.devices:
            trained = await self._turn.server_end(server, links, replace(plan, devices=(device,)))
            if not trained:
                continue
            # a copy: the next device may train these tensors, and leave
            after = {**server.adapter, **{k: v.clone() for part in trained for k, v in part.adapter.items()}}
            if device.device in server.refusable:
                length = norm({name: value - server.adapter[name] for name, value in after.items()})
                if await _is_poison(server, device.device, after, length, lengths):
                    server.expel(poisoned(device.device, plan.round))
                    continue
                lengths.append(length)
            server.adapter, anybody = after, True
        relayed, server.adapter = server.adapter, broadcast
        return [Contribution(relayed, dict.fromkeys(relayed, 1.0))] if anybody else []

    def holds(self, device: str, row: int) -> bool:  # noqa: ARG002
        return False

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        return max(
            self._turn.server_bytes(replace(plan, devices=(device,)), costs, num_tokens) for device in plan.devices
        )

    def state(self) -> State:
        return self._turn.state()

    def load(self, state: State) -> None:
        self._turn.load(state)


async def _is_poison(server: Server, device: str, after: Adapter, length: float, before: Sequence[float]) -> bool:
    """Whether the model does not run with what a turn has left; tried where the change is far longer than others."""
    if before and length <= FAR * median_low(before):
        return False
    began, alone = server.adapter, [{"device": device, "norm": length, "times": 1.0}]

    def sound(without: Collection[str], times: float) -> bool:
        return bool(without) or server.sound(further(began, after, times))

    return bool(await server.machine.aside(lambda: found_out(alone, sound, server.refusable.__contains__)))
