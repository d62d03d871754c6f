"""The seeds round: devices train alone along K seeds, and what they send and are sent is scalars (FedKSeed).

    device                              wire                    server
                          <- Assignment(plan, K sums) <-
    weights to where the sums say
    local_steps times: batch, seed -> loss to either side -> step
                          -> Update(T indices, T slopes) ->     sums of everybody, by what they trained

The sums are all that a run has learnt. The server's adapter (or, of the full form, its base) is what they come to.

Shapes: K seeds, T local steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cutlayer.device.talks.seeds import INDICES, ODDS, SHAPE, SLOPES, SUMS, said, standing_of
from cutlayer.gate.forms import Forms, Listed, Script, ScriptOf
from cutlayer.model.base import Base
from cutlayer.model.kseed import sums_of
from cutlayer.model.standing import Standing
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.seed_search import SeedSearch, search_of
from cutlayer.policies.seed_sums import by_share, gathered
from cutlayer.policies.seeds import SlopeHistory
from cutlayer.rounds.turn import Turn
from cutlayer.server.contributions import fair
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.state import State
from cutlayer.types import Adapter, Costs, DevicePlan, RoundPlan
from cutlayer.wire.link import Link


def script(plan: DevicePlan, forms: Forms) -> Script:
    """One update of scalars."""
    count = search_of(plan).count

    def known(facts: Adapter) -> None:
        forms.expect_slopes(SLOPES, facts[SLOPES])
        if bool((facts[INDICES] >= count).any()) or bool((facts[INDICES] < -1).any()):
            raise forms.refused("wrong-facts", f"indices below {count}", "others")

    yield forms.update(Listed(forms, said(plan), {}, known))


class SeedsRound:
    """The round, which keeps the sums.

    Args:
      search: Along which seeds devices search, and what moves.
      pro: Whether seeds along which the loss was steep are drawn rather than others.

    Attributes:
      sums: fp32 (K,), at which the weights stand.

    Example:
      >>> from cutlayer import SeedsRound, seed_search
      >>> SeedsRound(seed_search(8, 0, 5e-4, 0.0, full=False), pro=False).sums.tolist()
      [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    equal_cuts = together = keeps_activations = cuts_batches = divisible = False
    one_result = True  # sums of what all devices say
    begins_from_seed = True  # devices are sent no adapter: both ends make the first one

    def __init__(self, search: SeedSearch, *, pro: bool) -> None:
        self._search = search
        self.shape = SHAPE
        self.script: ScriptOf = script
        self.sums = torch.zeros(search.count)
        self._history = SlopeHistory(search.count) if pro else None

    def broadcast(self, _adapter: Adapter, _device: DevicePlan) -> tuple[Adapter, Adapter]:
        """The facts that devices are sent: the sums, and with Pro the probability of each seed."""
        odds = {} if self._history is None else {ODDS: self._history.probabilities()}
        return {}, {SUMS: self.sums, **odds}

    async def server_end(self, server: Server, links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        server.begin(plan, one_per_device)
        async with asyncio.TaskGroup() as tasks:
            for device in plan.devices:
                tasks.create_task(Turn(server, links[device.device], device).hold())
        if not server.ledger.stayed:
            return []
        self._gather(server)
        adapter = await server.machine.run(
            lambda: self._values(server),
            like=lambda: server.adapters.shared,
            what="step",
            flops=0.0,  # noise for the seeds that moved, beside forward passes of a model
            round=plan.round,
            step=None,
        )
        return [Contribution(adapter, dict.fromkeys(adapter, 1.0), round=plan.round)]

    def _gather(self, server: Server) -> None:
        """Adds what everybody sent to the sums, in the order of names."""
        updates = [server.ledger.updates[device.device] for device in server.ledger.stayed]
        rate = server.learning_rate(server.ledger.plan.round, 0)
        own = [
            sums_of(update.facts[INDICES], update.facts[SLOPES], [rate] * len(update.facts[INDICES]), len(self.sums))
            for update in updates
        ]
        said = {update.device: float(update.weight) for update in updates}
        if server.base.settings.task == "causal-lm":
            said = fair(said, {update.device: update.samples for update in updates})
        shares = by_share([said[update.device] for update in updates])
        self.sums = gathered(self.sums, list(zip(shares, own, strict=True)))
        for update in updates:
            if self._history is not None:
                self._history.observe(update.facts[INDICES], update.facts[SLOPES])

    def _values(self, server: Server) -> Adapter:
        """The adapter at the sums; the head's alone where the base moves."""
        standing = self.stand(server.base, server.settings.seed)
        return {name: standing.tensors[name].clone() for name in server.adapters.shared if name in standing.tensors}

    def holds(self, device: str, row: int) -> bool:  # noqa: ARG002
        return False

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:  # noqa: ARG002
        """The adapter and the sums; of the full form, the weights, which every server has."""
        return max(costs.device_adapter_bytes(device) for device in plan.devices) + 4 * len(self.sums)

    def state(self) -> State:
        history: dict[str, Tensor] = {} if self._history is None else self._history.state()
        return State({"seeds": len(self.sums)}, {SUMS: self.sums, **history})

    def load(self, state: State) -> None:
        self.sums = state.tensors[SUMS].cpu()
        if self._history is not None:
            self._history.load({name: value.cpu() for name, value in state.tensors.items() if name != SUMS})

    def made_from(self, seed: int) -> dict[str, Any]:
        """The facts that `standing_of` makes the weights from, beside the base: the search, and the run's seed."""
        return {**asdict(self._search), "run_seed": seed}

    def stand(self, base: Base, seed: int) -> Standing:
        """Moves the weights of this process to where the run stands: others of this process may have moved them."""
        standing = standing_of(base, self._search, seed)
        standing.move(self.sums)
        return standing
