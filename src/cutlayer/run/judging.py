"""A run whose devices judge: whom it asks when, and what they say as metrics, of each and over all."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutlayer.errors import DivergedError, Refused
from cutlayer.methods.method import Method
from cutlayer.model.sums import Sums
from cutlayer.report.metrics import ClassificationMetrics, LanguageMetrics
from cutlayer.rounds.judging import judged_plan, judging
from cutlayer.rounds.patience import Patience
from cutlayer.server.server import Server
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.link import Link, Refusing


@dataclass(frozen=True, slots=True)
class Judgement:
    """The judgement of devices on an adapter.

    Attributes:
      asked: the devices.
      sums: of those who answered and hold rows out, by name.
    """

    asked: Collection[str]
    sums: Mapping[str, Sums]
    answered: Collection[str]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics over all of these devices, as of their rows together; empty where there are none."""
        whole = Sums(next((sums.classes for sums in self.sums.values()), 0))
        for sums in self.sums.values():
            whole.take(sums)
        return metrics_of(whole) if self.sums else {}

    def row(self) -> dict[str, Any]:
        """The judgement as a line of metrics.jsonl has it."""
        return {
            "metrics": self.metrics,
            "samples": sum(sums.samples for sums in self.sums.values()),
            "devices": {name: metrics_of(sums) | {"samples": sums.samples} for name, sums in self.sums.items()},
        }


def metrics_of(sums: Sums) -> dict[str, float]:
    """The metrics of `server/evaluate.py`, of sums; without `macro_f1` where classes are not counted apart."""
    if not sums.classes:
        language = LanguageMetrics()
        language.add(math.fsum(sums.losses), sums.weight)
        return language.result()
    classes = ClassificationMetrics(sums.classes)
    classes.add_counts(sums.counts_3C, sums.losses)
    result = classes.result()
    if sums.classes == 1:
        del result["macro_f1"]
    return result


def _not_finite(device: str, round: int, loss: float) -> DivergedError:
    return DivergedError(
        f"device {device}, before round {round}, held-out rows: expected a finite loss, got {loss}. "
        "Lower the learning rate (--lr), or set train.clip.",
        device=device,
        round=round,
        step=0,
    )


class Judges:
    """Asks the devices of a round.

    Args:
      method: How the run decides.
      server: Which has the adapter.
      patience: How long devices are waited for.
    """

    def __init__(self, method: Method, server: Server, patience: Patience) -> None:
        self._method, self._server, self._patience = method, server, patience
        settings = server.base.settings
        apart = 1 if method.round.shape.labels_stay else settings.num_labels
        self._classes = apart if settings.task == "classification" else 0

    async def judge(
        self, round: int, devices: Sequence[DevicePlan], plan: RoundPlan, links: Mapping[str, Link]
    ) -> Judgement:
        """Asks devices what the adapter as it is comes to on the rows that they hold out.

        Args:
          round: That comes next.
          devices: Who judges, by the plan that each had or will have.
          plan: Of the round that they are of.
          links: The server's ends, by device.

        Raises:
          DivergedError: No device's loss is finite, or a device's is not that cannot be refused.
        """
        shape, server = self._method.round.shape, self._server
        plans = tuple(judged_plan(device, shape.reads(device), plan.ranks) for device in devices)
        await server.machine.aside(lambda: self._count(plans))
        kept = self._method.structure()
        found = await self._patience.judge(
            lambda ends: judging(server, ends, plans, round, classes=self._classes, kept=kept),
            server,
            links,
            RoundPlan(round, plans),
        )
        diverged = {name: sums for name, sums in found.items() if not math.isfinite(math.fsum(sums.losses))}
        for name, sums in diverged.items():
            link, error = links[name], _not_finite(name, round, math.fsum(sums.losses))
            if len(diverged) == len(found) or not isinstance(link, Refusing):
                raise error
            link.refuse(Refused("diverged", str(error)))
        return Judgement(
            [device.device for device in devices],
            {name: sums for name, sums in found.items() if sums.weight and name not in diverged},
            set(found),
        )

    def _count(self, plans: Sequence[DevicePlan]) -> None:
        """Counts what judging costs here, where it holds up no link; later it is looked up."""
        for plan in plans:
            if not plan.alone:
                self._server.costs.server(plan, plan.batch_size, self._server.longest_tokens)
