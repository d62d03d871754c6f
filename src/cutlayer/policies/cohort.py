"""A cohort whose labels together are those of the fleet, by genetic search.

MergeSFL: Split Federated Learning with Feature Merging and Batch Size Regulation
    Yunming Liao, Yang Xu, Hongli Xu, Lun Wang, Zhiwei Yao, Chunming Qiao. ICDE 2024.
    https://arxiv.org/abs/2311.13348

    the paper                                            here
    -------------------------------------------------    ----------------------------------------
    KL of the merged batch's labels from the fleet's     label_mix.label_kl
    d_i times a sample's bytes, summed, within budget    batch.ingress_samples
    priority to those who took part less often           1 / (1 + turns - fewest turns)
    genetic search over who is in                        _Search

That the paper searches genetically for the smallest KL under a bandwidth constraint is sure (reviews). Recalled with
less confidence: the form of the priority. Ours, the paper being silent: how priority and KL are weighed, and the
settings of the search.

Shapes: P individuals, N devices, C classes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import ConfigError
from cutlayer.policies.batch import ingress_samples
from cutlayer.policies.label_mix import Floats, label_distributions, label_kl
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.select import check_fraction, number_of
from cutlayer.types import RoundPlan

Masks = NDArray[np.bool_]

POPULATION, GENERATIONS, TOURNAMENT, CROSSOVER, ELITE = 50, 100, 3, 0.8, 2
PRIORITY = 0.1
"""Worth of serving the whole fleet's priority, in nats of KL: enough to let equals take turns."""


def kl_cohort(fraction: float = 1.0, ingress_mbit: float | None = None) -> Planner:
    """The devices of the plan that score highest together; they keep the plan's order.

    A cohort scores minus its KL plus `PRIORITY` times its share of all priority. It has as many devices as `fraction`
    says, or as many of them as the budget admits. Everyone, with no budget, needs no search and no labels.

    Args:
      fraction: Of the devices in the plan, rounded, but at least one device.
      ingress_mbit: What the server can take in, in megabits per second; None for no limit. It limits whom the planner
        chooses; how narrow the server's connection is in simulation is the fleet's to say.

    Raises:
      ConfigError: Another fraction than above 0 and at most 1, a limit that is not positive; when planning, labels
        that are not known, or a limit that admits no device.

    Example:
      >>> from cutlayer import everyone, kl_cohort
      >>> from cutlayer.testing.playground import planned
      >>> counts = {"device-0": (9, 1), "device-1": (9, 1), "device-2": (1, 9)}
      >>> plan = planned(everyone(), kl_cohort(0.67), label_counts=counts)
      >>> [device.device for device in plan.devices]  # one of each kind is nearest to the labels of all
      ['device-1', 'device-2']
    """
    check_fraction(fraction)
    if ingress_mbit is not None and not ingress_mbit > 0:
        raise ConfigError(
            f"method.ingress_mbit: expected above 0, or null, got {ingress_mbit}. Change method.ingress_mbit."
        )

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        if fraction == 1 and ingress_mbit is None:
            return plan
        search = _Search(
            shares_NC=label_distributions(situation, [device.device for device in plan.devices]),
            sizes_N=np.array([device.batch_size for device in plan.devices], np.float64),
            priority_N=_priorities(plan, situation),
            number=number_of(fraction, plan),
            budget=np.inf if ingress_mbit is None else ingress_samples(ingress_mbit, situation),
            rng=situation.random(plan.round, "kl_cohort"),
        )
        return replace(plan, devices=tuple(plan.devices[index] for index in np.flatnonzero(search.best())))

    return planner


def _priorities(plan: RoundPlan, situation: Situation) -> Floats:
    """(N,), summing to 1: larger for those who took part less often."""
    turns = Counter(record.device for record in situation.history.records)
    turns_N = np.array([turns[device.device] for device in plan.devices])
    priority_N = 1 / (1 + turns_N - turns_N.min())
    normal_N: Floats = priority_N / priority_N.sum()
    return normal_N


@dataclass(frozen=True)
class _Search:
    """One genetic search over masks of who is in.

    Attributes:
      shares_NC: each device's label distribution.
      sizes_N: samples of each in a step, if it is in.
      priority_N: of each; they sum to 1.
      number: devices of a cohort, if the budget admits them.
      budget: samples of a cohort in a step.
      rng: of every draw.
    """

    shares_NC: Floats
    sizes_N: Floats
    priority_N: Floats
    number: int
    budget: float
    rng: np.random.Generator

    def best(self) -> Masks:
        """The mask that scored highest in all generations, (N,)."""
        if self.sizes_N.min() > self.budget:
            raise ConfigError(
                f"method.ingress_mbit: expected room for a batch of {self.sizes_N.min():.0f} samples in a second, "
                f"got room for {self.budget:.3g}. Raise method.ingress_mbit, or lower train.batch_size or method.d_max."
            )
        masks_PN = self._feasible(np.zeros((POPULATION, len(self.sizes_N)), bool))
        for _ in range(GENERATIONS):
            scores_P = self.scores(masks_PN)
            elite = masks_PN[np.argsort(-scores_P, kind="stable")[:ELITE]]
            masks_PN = np.concatenate([elite, self._feasible(self._children(masks_PN, scores_P))])
        best: Masks = masks_PN[self.scores(masks_PN).argmax()]
        return best

    def scores(self, masks_PN: Masks) -> Floats:
        """The score of each cohort, (P,); larger is better."""
        kl_P = label_kl(masks_PN * self.sizes_N, self.shares_NC, self.shares_NC.mean(axis=0))
        scores_P: Floats = PRIORITY * (masks_PN @ self.priority_N) - kl_P
        return scores_P

    def _children(self, masks_PN: Masks, scores_P: Floats) -> Masks:
        """The cohorts that make a generation with the elite: of two tournaments' winners, crossed and mutated."""
        number, width = POPULATION - ELITE, masks_PN.shape[1]
        drawn = self.rng.integers(len(masks_PN), size=(2, number, TOURNAMENT))
        winners = np.take_along_axis(drawn, scores_P[drawn].argmax(axis=2)[..., None], axis=2)[..., 0]
        one_PN, other_PN = masks_PN[winners[0]], masks_PN[winners[1]]
        crosses_P = self.rng.random(number) < CROSSOVER
        from_other_PN = (self.rng.random((number, width)) < 0.5) & crosses_P[:, None]
        flips_PN = self.rng.random((number, width)) < 1 / width
        children_PN: Masks = np.where(from_other_PN, other_PN, one_PN) ^ flips_PN
        return children_PN

    def _feasible(self, masks_PN: Masks) -> Masks:
        """Repairs masks: drops devices at random until number and budget hold, adds others at random while they do."""
        return np.stack([self._repaired(mask_N) for mask_N in masks_PN])

    def _repaired(self, mask_N: Masks) -> Masks:
        shuffled = self.rng.permutation(len(mask_N))
        those_in_first = np.concatenate([shuffled[mask_N[shuffled]], shuffled[~mask_N[shuffled]]])
        taken_N, number, total = np.zeros(len(mask_N), bool), 0, 0.0
        for index in those_in_first.tolist():
            if number == self.number:
                break
            if total + self.sizes_N[index] <= self.budget:
                taken_N[index], number, total = True, number + 1, total + float(self.sizes_N[index])
        return taken_N
