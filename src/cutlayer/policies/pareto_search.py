"""Three ways to look for plans that no other dominates: all of them, NSGA-II, and a predictive GAN.

A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II
    Kalyanmoy Deb, Amrit Pratap, Sameer Agarwal, T. Meyarivan. IEEE TEC 2002. Here it is pymoo's.

The predictive GAN, as the abstract of arXiv 2209.02428 has it: a discriminator learns from the difference between the
dominating and the dominated of two solutions; a generator predicts solutions that dominate by it. Our reading: the
sizes of both, how long they learn, that half of each generation is proposed and half mutated, and NSGA-II's selection.

One plan dominates another that is worse in one respect and better in none. Decisions are levels, from 0 on.

Shapes: P plans, K devices, 3 decisions of each, V = 3 K of them all, R noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cutlayer.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Objectives = Callable[[Ints], Floats]
"""(P, K, 3) -> (P, 2), both to be small."""
Search = Callable[[Objectives, Ints, int, np.random.Generator], Ints]
"""(objectives, levels of each decision (K, 3), plans to try, random numbers) -> those that were tried, (P, K, 3)."""

POPULATION = 64
MUTATION = 0.15
"""The part of decisions that a mutated plan draws anew."""
HIDDEN, NOISE, LESSONS, PAIRS, RATE = 32, 8, 20, 64, 5e-3
"""The GAN: width of a layer, of the noise, steps of both nets in a generation, pairs in a step, learning rate."""


def front(points_P2: Floats) -> Ints:
    """The places of the points that no other dominates, by their first number; of equal points, the first.

    Example:
      >>> front(np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 2.0], [1.0, 2.0]])).tolist()
      [1, 0]
    """
    order_P = np.lexsort((points_P2[:, 1], points_P2[:, 0]))
    second_P = points_P2[order_P, 1]
    before_P = np.concatenate([[np.inf], np.minimum.accumulate(second_P)[:-1]])
    best_P: Ints = order_P[second_P < before_P]
    return best_P


def hypervolume(points_P2: Floats, reference_2: Floats) -> float:
    """The area that points dominate, up to a reference that is worse than all of them.

    Example:
      >>> hypervolume(np.array([[1.0, 3.0], [2.0, 1.0]]), np.array([4.0, 4.0]))
      7.0
    """
    inside_P2 = points_P2[(points_P2 < reference_2).all(1)]
    best_P2 = inside_P2[front(inside_P2)]
    right_P = np.append(best_P2[1:, 0], reference_2[0])
    return float(((right_P - best_P2[:, 0]) * (reference_2[1] - best_P2[:, 1])).sum())


def span_of(points_P2: Floats) -> tuple[Floats, Floats]:
    """The least of each number, and how far the greatest is from it; 1 where all are equal."""
    low_2, high_2 = points_P2.min(0), points_P2.max(0)
    return low_2, np.where(high_2 > low_2, high_2 - low_2, 1.0)


# ------------------------------------------------------------------ all of them


def enumerated(objectives: Objectives, sizes_K3: Ints, evaluations: int, rng: np.random.Generator) -> Ints:  # noqa: ARG001
    """Every plan, where there are no more than may be tried; else as many, drawn evenly."""
    if math.prod(sizes_K3.ravel().tolist()) > evaluations:
        return drawn(sizes_K3, evaluations, rng)
    levels: tuple[int, ...] = tuple(sizes_K3.ravel().tolist())
    every_PK3: Ints = np.indices(levels).reshape(sizes_K3.size, -1).T.reshape(-1, *sizes_K3.shape)
    return every_PK3


def drawn(sizes_K3: Ints, number: int, rng: np.random.Generator) -> Ints:
    """Draws so many plans, each level as likely as another."""
    return rng.integers(sizes_K3, size=(number, *sizes_K3.shape))


# ------------------------------------------------------------------ NSGA-II


def nsga2(objectives: Objectives, sizes_K3: Ints, evaluations: int, rng: np.random.Generator) -> Ints:
    """The generations of pymoo's NSGA-II, all that were tried.

    Raises:
      ConfigError: pymoo is not installed.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.problem import Problem
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair
        from pymoo.operators.sampling.rnd import IntegerRandomSampling
        from pymoo.optimize import minimize
    except ImportError as error:
        raise ConfigError(
            "method.search: expected pymoo to be installed for nsga2, got an ImportError. Install cutlayer[pareto], or "
            "choose enumerate or gan."
        ) from error
    tried: list[Ints] = []

    class Plans(Problem):  # type: ignore[misc]
        def _evaluate(self, x_PV: Any, out: dict[str, Any], *_args: Any, **_others: Any) -> None:
            choice_PK3 = np.rint(x_PV).astype(np.intp).reshape(-1, *sizes_K3.shape)
            tried.append(choice_PK3)
            out["F"] = objectives(choice_PK3)

    whole = {"repair": RoundingRepair(), "vtype": float}
    problem = Plans(n_var=sizes_K3.size, n_obj=2, xl=0, xu=sizes_K3.ravel() - 1, vtype=int)
    algorithm = NSGA2(
        pop_size=min(POPULATION, evaluations),
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=1.0, eta=3.0, **whole),
        mutation=PM(prob=1.0, eta=3.0, **whole),
        eliminate_duplicates=True,
    )
    minimize(problem, algorithm, ("n_eval", evaluations), seed=int(rng.integers(2**31)), verbose=False)
    return np.concatenate(tried)[:evaluations]


# ------------------------------------------------------------------ the predictive GAN


def gan(objectives: Objectives, sizes_K3: Ints, evaluations: int, rng: np.random.Generator) -> Ints:
    """The generations that a generator proposes and a discriminator teaches, all that were tried."""
    most_V = np.maximum(sizes_K3.ravel() - 1, 1)
    alive_PV = drawn(sizes_K3, min(POPULATION, evaluations), rng).reshape(-1, sizes_K3.size)
    points_P2 = objectives(alive_PV.reshape(-1, *sizes_K3.shape))
    tried, nets = [alive_PV], _Nets(sizes_K3.size, int(rng.integers(2**31)))
    left = evaluations - len(alive_PV)
    while left > 0:
        scaled_PV = torch.from_numpy(alive_PV / most_V).float()
        nets.learn(scaled_PV, torch.from_numpy(_dominates(points_P2)))
        proposed_PV = np.rint(nets.propose(scaled_PV).double().numpy() * most_V).astype(np.intp)
        proposed_PV = np.minimum(proposed_PV, sizes_K3.ravel() - 1)
        anew_PV = rng.integers(sizes_K3.ravel(), size=alive_PV.shape)
        mutated_PV = np.where(rng.random(alive_PV.shape) < MUTATION, anew_PV, alive_PV)
        half_P1 = rng.random((len(alive_PV), 1)) < 0.5
        children_PV = np.where(half_P1, proposed_PV, mutated_PV)[:left]
        tried.append(children_PV)
        left -= len(children_PV)
        everyone_PV = np.concatenate([alive_PV, children_PV])
        everybody_P2 = np.concatenate([points_P2, objectives(children_PV.reshape(-1, *sizes_K3.shape))])
        best_P = selected(everybody_P2, len(alive_PV))
        alive_PV, points_P2 = everyone_PV[best_P], everybody_P2[best_P]
    return np.concatenate(tried).reshape(-1, *sizes_K3.shape)


def _dominates(points_P2: Floats) -> NDArray[np.bool_]:
    """(P, P): whether the one of the row dominates the one of the column."""
    one, other = points_P2[:, None], points_P2[None]
    better: NDArray[np.bool_] = np.logical_and((one <= other).all(2), (one < other).any(2))
    return better


def selected(points_P2: Floats, number: int) -> Ints:
    """NSGA-II's selection: front after front, of the last one those that stand most alone.

    Example:
      >>> selected(np.array([[1.0, 4.0], [2.0, 3.9], [3.0, 3.0], [4.0, 1.0], [9.0, 9.0]]), 3).tolist()
      [0, 3, 2]
    """
    left_P, kept = np.arange(len(points_P2)), list[int]()
    while len(kept) < number:
        below_PP = _dominates(points_P2[left_P])
        first_P = left_P[~below_PP.any(0)]
        if len(kept) + len(first_P) > number:
            crowd_P = _alone(points_P2[first_P])
            first_P = first_P[np.argsort(-crowd_P, kind="stable")[: number - len(kept)]]
        kept += first_P.tolist()
        left_P = left_P[below_PP.any(0)]
    return np.array(kept)


def _alone(points_P2: Floats) -> Floats:
    """The distance between each point's neighbours; infinite for the points at an end."""
    low_2, width_2 = span_of(points_P2)
    total_P = np.zeros(len(points_P2))
    for value_P in ((points_P2 - low_2) / width_2).T:
        order_P = value_P.argsort(kind="stable")
        total_P[order_P[1:-1]] += value_P[order_P[2:]] - value_P[order_P[:-2]]
        total_P[order_P[[0, -1]]] = np.inf
    return total_P


class _Net:
    """Two hidden layers, of weights that a generator draws."""

    def __init__(self, wide_in: int, wide_out: int, generator: torch.Generator) -> None:
        sizes = (wide_in, HIDDEN, HIDDEN, wide_out)
        self.weights: list[Tensor] = []
        for fan_in, fan_out in pairwise(sizes):
            drawn = torch.randn(fan_out, fan_in, generator=generator) / math.sqrt(fan_in)
            self.weights += [drawn.requires_grad_(), torch.zeros(fan_out, requires_grad=True)]

    def __call__(self, x: Tensor) -> Tensor:
        *hidden, (weight, bias) = zip(self.weights[::2], self.weights[1::2], strict=True)
        for w, b in hidden:
            x = functional.silu(functional.linear(x, w, b))
        return functional.linear(x, weight, bias)


class _Nets:
    """The discriminator: (one, other) -> the logit that one dominates other. The generator: (plan, noise) -> a plan.

    Args:
      num_decisions: V.
      seed: Of all that is drawn.
    """

    def __init__(self, num_decisions: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._judge = _Net(2 * num_decisions, 1, self._generator)
        self._author = _Net(num_decisions + NOISE, num_decisions, self._generator)
        self._of_judge = torch.optim.Adam(self._judge.weights, lr=RATE)
        self._of_author = torch.optim.Adam(self._author.weights, lr=RATE)

    def learn(self, plans_PV: Tensor, dominates_PP: Tensor) -> None:
        """The judge learns which of two plans dominates, then the author what it takes to dominate."""
        better, worse = dominates_PP.nonzero(as_tuple=True)
        for _ in range(LESSONS if len(better) else 0):
            picked = torch.randint(len(better), (PAIRS,), generator=self._generator)
            one, other = plans_PV[better[picked]], plans_PV[worse[picked]]
            logits = torch.cat([self._compare(*pair) for pair in ((one, other), (other, one))])
            truth = torch.cat([torch.ones(PAIRS, 1), torch.zeros(PAIRS, 1)])
            self._descend(self._of_judge, functional.binary_cross_entropy_with_logits(logits, truth))
        for _ in range(LESSONS):
            logits = self._compare(self._propose(plans_PV), plans_PV)
            self._descend(self._of_author, functional.softplus(-logits).mean())

    def propose(self, plans_PV: Tensor) -> Tensor:
        """Proposes for each plan one that is taken to dominate it, each decision from 0 to 1."""
        with torch.no_grad():
            return self._propose(plans_PV)

    def _compare(self, one_PV: Tensor, other_PV: Tensor) -> Tensor:
        """The logits that one dominates other, from how it differs and where."""
        return self._judge(torch.cat([one_PV - other_PV, other_PV], 1))

    def _propose(self, plans_PV: Tensor) -> Tensor:
        noise_PR = torch.randn(len(plans_PV), NOISE, generator=self._generator)
        return torch.sigmoid(self._author(torch.cat([plans_PV, noise_PR], 1)))

    @staticmethod
    def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


SEARCHES: dict[str, Search] = {"enumerate": enumerated, "nsga2": nsga2, "gan": gan}
