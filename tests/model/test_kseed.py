"""A device's steps, its scalars alone, and the server's sums: the same weights, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bases import moved_adapter, open_base
from cutlayer.model.dropout import still
from cutlayer.model.kseed import SKIPPED, Walk, sums_of
from cutlayer.model.noise import normal
from cutlayer.model.standing import Standing
from cutlayer.policies.seed_sums import by_share, gathered
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter

ModelMaker = Callable[[str, str], Path]
SEEDS = (11, 10**11, 7, 3)
COUNT = len(SEEDS)
TRIED = (2, 0, 2, 3, 2, 0)
RATES = (1e-4, 1e-4, 5e-5, 1e-4, 7e-4, 1e-4)


def weights() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    return {"a": 0.1 * torch.randn(30, 20, generator=generator), "b": torch.randn(7, generator=generator)}


def slope_to(standing: Standing, target: float) -> Callable[[], Tensor]:
    return lambda: torch.stack([(tensor - target).abs().sum() for tensor in standing.tensors.values()]).sum()


def walked(standing: Standing, start: Tensor, target: float = 0.3) -> Walk:
    walk = Walk(standing, start)
    for index, rate in zip(TRIED, RATES, strict=True):
        walk.step(index, slope_to(standing, target), epsilon=1e-3, rate=rate)
    return walk


def at(sums_K: Tensor) -> Adapter:
    standing = Standing(weights(), SEEDS)
    standing.move(sums_K)
    return standing.tensors


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def received(walk: Walk) -> Tensor:
    """The sums that the server makes of what was sent."""
    facts = walk.facts()
    return sums_of(facts["seed_indices"], facts["scalars"], RATES, COUNT)


def test_replayed_is_locally_stepped() -> None:
    """One device: after three rounds it stands, by its own steps, where its scalars alone lead."""
    device, sums_K = Standing(weights(), SEEDS), torch.zeros(COUNT)
    for round in range(3):
        walk = walked(device, sums_K, target=0.3 * round)
        assert walk.own_K.abs().max() > 0
        sums_K = gathered(sums_K, [(1.0, received(walk))])
        assert torch.equal(device.sums, sums_K)
        assert_same(device.tensors, at(sums_K))


def test_a_device_that_missed_rounds_catches_up_by_sums() -> None:
    """Two devices train for three rounds, each alone at first; a third one was there in the first round only."""
    fleet = [Standing(weights(), SEEDS) for _ in range(3)]
    sums_K = torch.zeros(COUNT)
    for round in range(3):
        walks = [walked(standing, sums_K, target=0.2 * k) for k, standing in enumerate(fleet[: 3 if round == 0 else 2])]
        shares = by_share([1.0 + k for k in range(len(walks))])
        sums_K = gathered(sums_K, [(share, received(walk)) for share, walk in zip(shares, walks, strict=True)])
    for standing in fleet:
        standing.move(sums_K)
        assert_same(standing.tensors, at(sums_K))


def test_devices_of_one_process_share_the_weights() -> None:
    """Their steps alternate; each walk is as if it had been alone."""
    start, shared = torch.tensor([0.0, 1e-3, 0.0, -2e-3]), Standing(weights(), SEEDS)
    walks = [Walk(shared, start) for _ in range(2)]
    for index, rate in zip(TRIED, RATES, strict=True):
        for walk, target in zip(walks, (0.3, -0.4), strict=True):
            walk.step(index, slope_to(shared, target), epsilon=1e-3, rate=rate)
    for walk, target in zip(walks, (0.3, -0.4), strict=True):
        alone = walked(Standing(weights(), SEEDS), start, target)
        assert torch.equal(walk.own_K, alone.own_K)
        assert torch.equal(walk.facts()["scalars"], alone.facts()["scalars"])


def test_a_step_is_mezos() -> None:
    """w - rate g z with g from both sides, to the grid."""
    standing = Standing(weights(), SEEDS)
    first = {name: tensor.clone() for name, tensor in standing.tensors.items()}
    walk = Walk(standing, torch.zeros(COUNT))
    mean = walk.step(1, slope_to(standing, 0.3), epsilon=1e-3, rate=1e-4)
    z = {name: normal([SEEDS[1]], name, 0, tensor.numel())[0].view(tensor.shape) for name, tensor in first.items()}
    plus, minus = (
        sum(float((first[name] + side * z[name] - 0.3).abs().sum()) for name in first) for side in (1e-3, -1e-3)
    )
    slope = (plus - minus) / 2e-3
    assert mean == pytest.approx((plus + minus) / 2, rel=1e-5)
    assert walk.facts()["scalars"].item() == pytest.approx(slope, rel=1e-3)
    for name, tensor in standing.tensors.items():
        torch.testing.assert_close(tensor, first[name] - 1e-4 * slope * z[name], atol=2e-5, rtol=0)


def test_what_is_sent_says_which_seed_and_how_steep() -> None:
    standing = Standing(weights(), SEEDS)
    facts = walked(standing, torch.zeros(COUNT)).facts()
    assert facts["seed_indices"].tolist() == list(TRIED)
    assert facts["seed_indices"].dtype is torch.int32
    assert facts["scalars"].dtype is torch.float32


@pytest.mark.parametrize("losses", [(math.nan, 1.0), (1.0, math.inf), (math.nan, math.nan), (3e38, -3e38)])
def test_a_step_without_a_number_is_skipped(losses: tuple[float, float]) -> None:
    standing = Standing(weights(), SEEDS)
    walk, given = Walk(standing, torch.zeros(COUNT)), list(losses)
    walk.step(0, lambda: torch.tensor(given.pop(0), dtype=torch.float64), epsilon=1e-3, rate=1e-3)
    assert walk.facts()["seed_indices"].tolist() == [SKIPPED]
    assert walk.facts()["scalars"].tolist() == [0.0]
    assert torch.equal(received_one(walk), torch.zeros(COUNT))
    assert_same(standing.tensors, at(torch.zeros(COUNT)))


def received_one(walk: Walk) -> Tensor:
    facts = walk.facts()
    return sums_of(facts["seed_indices"], facts["scalars"], RATES[:1], COUNT)


@pytest.mark.parametrize(("clip", "taken"), [(0.0, True), (1.5, True), (1.0, True), (0.99, False)])
def test_a_step_between_losses_too_far_apart_is_skipped(clip: float, taken: bool) -> None:
    standing = Standing(weights(), SEEDS)
    walk, given = Walk(standing, torch.zeros(COUNT)), [1.0, 2.0]
    assert walk.step(0, lambda: torch.tensor(given.pop(0)), epsilon=1e-3, rate=1e-6, clip=clip) == 1.5
    assert (walk.facts()["seed_indices"].item() == 0) == taken
    assert bool(walk.own_K.any()) == taken


def test_rates_and_products_are_rounded_to_fp32() -> None:
    """As numpy's fp32 has them: what a device in another language would compute."""
    generator = torch.Generator().manual_seed(0)
    scalars, rates = torch.randn(200, generator=generator), torch.rand(200, generator=generator, dtype=torch.float64)
    own = sums_of(torch.arange(200), scalars, rates.tolist(), 200)
    assert torch.equal(own, torch.from_numpy(rates.numpy().astype(np.float32) * scalars.numpy()))
    assert not torch.equal(own, (rates * scalars.double()).float())


def test_sums_are_added_in_the_order_of_steps() -> None:
    """As fp32 has them: 1 + 1e-8 - 1 is 0."""
    own_K = sums_of(
        torch.tensor([1, 1, 1, SKIPPED, 0]), torch.tensor([1.0, 1e-8, -1.0, 9.0, 2.0]), [1.0] * 4 + [0.5], 2
    )
    assert own_K.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert", "classification")])
def test_a_whole_model_walks_and_is_found_again(family: str, task: str, tiny_model: ModelMaker) -> None:
    """Every weight of the base, and the head's: stepped here, replayed in another process's base."""
    folder, batch = tiny_model(family, task), random_batch(task)
    device, server = (open_base(folder, task) for _ in range(2))
    head = {name: value for name, value in moved_adapter(device).items() if ".lora_" not in name}
    here, there = (base.standing(SEEDS, head) for base in (device, server))
    walk, part = Walk(here, torch.zeros(COUNT)), device.whole(frozenset())
    part.use({name: here.tensors[name] for name in part.names})

    def loss() -> Tensor:
        with still(part.model):
            return part.loss(batch)

    for index, rate in zip(TRIED, RATES, strict=True):
        walk.step(index, loss, epsilon=1e-3, rate=rate)
    there.move(gathered(torch.zeros(COUNT), [(1.0, received(walk))]))
    assert walk.own_K.abs().max() > 0
    assert_same(here.tensors, there.tensors)
    other = server.whole(frozenset())
    other.use({name: there.tensors[name] for name in other.names})
    assert torch.equal(other.loss(batch), loss())
