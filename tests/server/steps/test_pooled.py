"""The pooled step: against sums written down sample by sample; what one mini-batch and no shuffling equal; who leaves.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bases import open_base
from cutlayer.errors import ConfigError, DivergedError
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.model.base import Base
from cutlayer.model.loss import MASKED
from cutlayer.policies.order import fifo
from cutlayer.server import engine
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.owners import SHARED, one_for_all
from cutlayer.server.samples import weight_of
from cutlayer.server.server import Server
from cutlayer.server.steps import pooled as module
from cutlayer.server.steps.merged import merge, merged
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time
from cutlayer.server.steps.pooled import Pool, mini_batches, num_steps, pooled
from cutlayer.server.steps.step import ServerStep
from cutlayer.state import State
from cutlayer.testing.playground import FlatCosts, fleet_of, learning_rate
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Cost, DevicePlan, Event, RoundPlan
from cutlayer.wire.messages import Activations, Gradients
from ends import activations_for, server_for

ModelMaker = Callable[[str, str], Path]
CUT = 1


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


@pytest.fixture(scope="module")
def llama(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("llama", "causal-lm"), "causal-lm")


def sent(base: Base, device: int, *, samples: int, tokens: int, cut: int = CUT, step: int = 0) -> Activations:
    batch = random_batch(base.settings.task, seed=10 * step + device, samples=samples, tokens=tokens)
    return replace(activations_for(base, batch, cut, device=f"device-{device}"), step=step)


def unequal(base: Base, num_devices: int = 3) -> list[Activations]:
    """Neither samples nor lengths are alike."""
    return [sent(base, i, samples=4 - i, tokens=8 + 2 * ((i + 1) % 3)) for i in range(num_devices)]


def plan_of(num_devices: int, *, cut: int = CUT, steps: int = 1, batch_size: int = 4) -> RoundPlan:
    devices = (DevicePlan(f"device-{i}", cut, batch_size, local_steps=steps) for i in range(num_devices))
    return RoundPlan(0, tuple(devices))


def serve(
    server: Server,
    step: ServerStep,
    arriving: Sequence[Activations],
    *,
    plan: RoundPlan | None = None,
    leaving: dict[float, str] | None = None,
) -> list[tuple[float, Gradients]]:
    """The answers and their times, if these arrive a second apart, and devices leave at these times."""
    answered: list[tuple[float, Gradients]] = []
    plan = plan or plan_of(len(arriving))

    async def reply(gradients: Gradients) -> None:
        answered.append((now(), gradients))

    async def program() -> None:
        server.begin(plan, step.owner)
        arrivals = Arrivals(plan, server.forecast, 10)

        def leave(device: str) -> None:
            server.leave(device)
            arrivals.leave(device)

        loop = asyncio.get_running_loop()
        for seconds, activations in enumerate(arriving):
            loop.call_later(float(seconds), arrivals.put, activations)
        for at, device in (leaving or {}).items():
            loop.call_later(at, leave, device)
        await step(server, arrivals, reply)

    run_virtual(program())
    return answered


def assert_same_answers(one: Sequence[tuple[float, Gradients]], other: Sequence[tuple[float, Gradients]]) -> None:
    for (_, mine), (_, theirs) in zip(one, other, strict=True):
        assert (mine.device, mine.step, mine.loss) == (theirs.device, theirs.step, theirs.loss)
        assert mine.grad_BTD is not None
        assert theirs.grad_BTD is not None
        assert torch.equal(mine.grad_BTD, theirs.grad_BTD)
        assert mine.grad_BTD.is_contiguous()
        assert mine.grad_BTD.abs().max() > 0


def assert_same_adapters(one: Server, other: Server) -> None:
    mine, theirs = (server.adapters.trainable(SHARED).values() for server in (one, other))
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert any(not torch.equal(value, one.adapter[name]) for name, value in mine.items())


# ------------------------------------------------------------------ how a pool is divided


@pytest.mark.parametrize(("num_samples", "size"), [(1, 1), (7, 3), (12, 4), (33, 16), (5, 100), (9, 1)])
def test_every_sample_is_in_one_mini_batch(num_samples: int, size: int) -> None:
    drawn = mini_batches(num_samples, size, (0, 1, 2))
    assert sorted(chain(*drawn)) == list(range(num_samples))
    sizes = [len(part) for part in drawn]
    assert len(sizes) == num_steps(num_samples, size)
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1, "no step is left to a few samples"
    assert all(below < above for part in drawn for below, above in pairwise(part))


def test_a_permutation_is_of_its_seed_and_place_alone() -> None:
    assert mini_batches(12, 4, (0, 1, 2)) == mini_batches(12, 4, (0, 1, 2))
    others = [mini_batches(12, 4, seed) for seed in ((1, 1, 2), (0, 2, 2), (0, 1, 3))]
    assert len({str(drawn) for drawn in (mini_batches(12, 4, (0, 1, 2)), *others)}) == 4


def test_owners_are_mixed() -> None:
    """Four owners of sixteen samples each: over many draws, a mini-batch has as many of one as of another."""
    met: Counter[int] = Counter()
    for step in range(200):
        met.update(place // 16 for place in mini_batches(64, 16, (0, 0, step))[0])
    assert sum(met.values()) == 200 * 16
    for owner in range(4):
        assert met[owner] == pytest.approx(200 * 4, rel=0.1)


# ------------------------------------------------------------------ the test of record: sample by sample


class ByHand:
    """The server's side written down from the paper: a forward pass for each sample, plain sums, torch's AdamW."""

    def __init__(self, base: Base, arrived: Sequence[Activations], drawn: Sequence[Sequence[int]], rate: float) -> None:
        self._part = base.server_part(CUT)
        start = base.initial_adapter(0)
        self.inside = {name: nn.Parameter(start[name].clone()) for name in base.server_names(CUT)}
        optimizer = torch.optim.AdamW(self.inside.values(), lr=rate, weight_decay=0.0, fused=True)
        owned = [(batch, row) for batch in arrived for row in range(len(batch.h_BTD))]
        weights = [weight_of(batch.labels[row]) for batch, row in owned]
        assert len(set(weights)) > 1 or base.settings.task == "classification"
        self.inputs = {batch.device: batch.h_BTD.clone().requires_grad_() for batch in arrived}
        self.own_grads: dict[str, Tensor] = {name: torch.zeros_like(h_BTD) for name, h_BTD in self.inputs.items()}
        self._weighed: dict[int, tuple[int, float]] = {}
        for places in drawn:
            self._part.use(self.inside)
            losses = {place: self._loss(*owned[place]) for place in places}
            for batch in arrived:  # of each device's own mean loss, what is at this state of the server
                mine = [place for place in places if owned[place][0] is batch]
                own = sum((weights[p] * losses[p] for p in mine), start=torch.zeros(())) / batch.weight
                if mine:
                    [grad] = torch.autograd.grad(own, self.inputs[batch.device], retain_graph=True)
                    self.own_grads[batch.device] += grad
            mean = sum(weights[p] * losses[p] for p in places) / sum(weights[p] for p in places)
            assert isinstance(mean, Tensor)
            grads = torch.autograd.grad(mean, list(self.inside.values()))
            for parameter, grad in zip(self.inside.values(), grads, strict=True):
                parameter.grad = grad
            optimizer.step()
            self._weighed |= {place: (weights[place], float(mean.detach())) for place in places}

    def mean_of_losses(self, places: Sequence[int]) -> float:
        """The mean, by weight, of the losses of the mini-batches in which these samples were."""
        weights, losses = zip(*(self._weighed[place] for place in places), strict=True)
        return float(sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights))

    def _loss(self, batch: Activations, row: int) -> Tensor:
        one = slice(row, row + 1)
        logits, labels = self._part.logits(self.inputs[batch.device][one], batch.mask_BT[one]), batch.labels[one].long()
        if labels.dim() == 1:
            return cross_entropy(logits, labels)
        return cross_entropy(logits[0, :-1].float(), labels[0, 1:], ignore_index=MASKED)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_it_is_the_sum_written_down(family: str, bert: Base, llama: Base) -> None:
    """Batches of unequal samples, lengths and target tokens, in three mini-batches."""
    base = {"bert": bert, "llama": llama}[family]
    arrived = unequal(base)
    server = server_for(base, fleet_of(3))
    answered = {gradients.device: gradients for _, gradients in serve(server, pooled(seed=5), arrived)}
    drawn = mini_batches(9, 4, (5, 0, 0))
    assert len(drawn) == 3
    hand = ByHand(base, arrived, drawn, learning_rate(0, 0))
    for name, value in server.adapters.trainable(SHARED).values().items():
        torch.testing.assert_close(value, hand.inside[name].detach(), rtol=1e-3, atol=2e-5)
    for batch in arrived:
        answer, grad_BTD = answered[batch.device], answered[batch.device].grad_BTD
        assert grad_BTD is not None
        assert grad_BTD.shape == batch.h_BTD.shape
        torch.testing.assert_close(grad_BTD, hand.own_grads[batch.device], rtol=1e-3, atol=1e-6)
        assert grad_BTD.abs().amax((1, 2)).min() > 1e-5, "every sample has a gradient"
        own = places_of(arrived, batch.device)
        assert answer.loss == pytest.approx(hand.mean_of_losses(own), rel=1e-4)
    total = sum(batch.weight for batch in arrived)
    mean = sum(answered[batch.device].loss * batch.weight for batch in arrived) / total
    assert mean == pytest.approx(hand.mean_of_losses(range(9)), rel=1e-4)


def places_of(arrived: Sequence[Activations], device: str) -> list[int]:
    """The places of a device's samples."""
    owners = [batch.device for batch in arrived for _ in batch.labels]
    return [place for place, owner in enumerate(owners) if owner == device]


# ------------------------------------------------------------------ what it equals, bit for bit


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_one_mini_batch_is_the_merged_step(family: str, bert: Base, llama: Base) -> None:
    base = {"bert": bert, "llama": llama}[family]
    whole, other = server_for(base, fleet_of(3)), server_for(base, fleet_of(3))
    assert_same_answers(
        serve(whole, pooled(server_batch=100, seed=3), unequal(base)), serve(other, merged(), unequal(base))
    )
    assert_same_adapters(whole, other)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_without_shuffling_it_serves_one_device_after_another(
    family: str, bert: Base, llama: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal batches in the order of names: each device's own batch is a mini-batch, and moves the adapter."""
    base = {"bert": bert, "llama": llama}[family]
    arriving = [sent(base, i, samples=4, tokens=8 + i) for i in range(3)]
    plain, in_turn, shuffled = (server_for(base, fleet_of(3)) for _ in range(3))
    in_order = serve(in_turn, one_device_at_a_time(fifo(), owner=one_for_all), arriving)
    mixed = serve(shuffled, pooled(), arriving)
    monkeypatch.setattr(
        module, "mini_batches", lambda n, size, _seed: [list(range(n))[i : i + size] for i in (0, 4, 8)]
    )
    assert_same_answers(serve(plain, pooled(), arriving), in_order)
    assert_same_adapters(plain, in_turn)
    with pytest.raises(AssertionError):
        assert_same_answers(mixed, in_order)


def test_who_arrives_first_does_not_matter(bert: Base) -> None:
    one, other = server_for(bert, fleet_of(3)), server_for(bert, fleet_of(3))
    assert_same_answers(serve(one, pooled(), unequal(bert)), serve(other, pooled(), unequal(bert)[::-1]))
    assert_same_adapters(one, other)


# ------------------------------------------------------------------ the barrier, the steps, their order in time


def test_nobody_is_answered_before_the_pool_is_done(bert: Base) -> None:
    events: list[Event] = []
    server = server_for(bert, fleet_of(3), events)
    answered = serve(server, pooled(), unequal(bert))
    assert [(event.what, event.round, event.step, event.peer) for event in events] == [("step", 0, 0, None)] * 3
    assert events[0].start_seconds == 2.0, "the last has arrived"
    assert [(at, answer.device) for at, answer in answered] == [
        (events[-1].end_seconds, f"device-{i}") for i in range(3)
    ]
    assert server.adapters.owners == (SHARED,)
    tallies = server.ledger.take_tallies()
    assert {name: (tally.steps, tally.weight) for name, tally in tallies.items()} == {
        "device-0": (1, 4),
        "device-1": (1, 3),
        "device-2": (1, 2),
    }
    assert all(tallies[answer.device].loss == pytest.approx(answer.loss) for _, answer in answered)


def test_devices_of_fewer_steps_leave_the_others_to_go_on(bert: Base) -> None:
    """And each local step has a permutation, and a learning rate, of its own."""
    server, drawn, rates = server_for(bert, fleet_of(2)), list[tuple[int, ...]](), list[float]()
    plan = RoundPlan(0, (replace(plan_of(1).devices[0], local_steps=2), plan_of(2).devices[1]))
    arriving = [sent(bert, 0, samples=4, tokens=8), sent(bert, 1, samples=2, tokens=8)]
    with noting(module, "mini_batches", lambda _n, _size, seed: drawn.append(seed)):
        server.engine.step = lambda _owner, rate: rates.append(rate)  # type: ignore[method-assign]
        answered = serve(
            server, pooled(server_batch=3, seed=8), [*arriving, sent(bert, 0, samples=4, tokens=8, step=1)], plan=plan
        )
    assert [(a.device, a.step) for _, a in answered] == [("device-0", 0), ("device-1", 0), ("device-0", 1)]
    assert drawn == [(8, 0, 0), (8, 0, 1)]
    assert rates == [learning_rate(0, 0)] * 2 + [learning_rate(0, 1)] * 2


@contextmanager
def noting(where: Any, name: str, note: Callable[..., None]) -> Iterator[None]:
    """Notes the arguments of every call."""
    original = getattr(where, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        note(*args, **kwargs)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, noted)
        yield


def test_what_trains_knows_nobody_and_drops_out_anew_in_every_mini_batch(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", base_dropout=True)
    keys: list[tuple[Any, ...]] = []
    with noting(engine, "seeded_dropout", lambda active, *key: keys.append((active, *key))):
        serve(server_for(base, fleet_of(3)), pooled(), unequal(base))
    assert keys == [(True, 0, "server", SHARED, 0, 0), *((True, 0, "server", SHARED, 0, 0, n) for n in (1, 2))]


def test_frozen_devices_get_no_gradient(bert: Base) -> None:
    arriving = [sent(bert, i, samples=2, tokens=8, cut=0) for i in range(2)]
    answered = serve(server_for(bert, fleet_of(2)), pooled(server_batch=3), arriving, plan=plan_of(2, cut=0))
    assert [answer.grad_BTD for _, answer in answered] == [None, None]
    assert all(answer.loss > 0 for _, answer in answered)


def test_a_loss_that_is_not_finite(bert: Base) -> None:
    arriving = unequal(bert)
    arriving[1].h_BTD[0, 0, 0] = float("nan")
    server = server_for(bert, fleet_of(3))
    with pytest.raises(DivergedError) as error:
        serve(server, pooled(), arriving)
    assert str(error.value).startswith("all devices, round 0, step 0: expected a finite loss, got nan. Lower")
    assert server.ledger.take_tallies() == {}


# ------------------------------------------------------------------ who leaves


def seconds_of(samples: int, tokens: int) -> float:
    flops = FlatCosts(3).server(plan_of(1).devices[0], samples, tokens)
    return (flops.forward_flops + flops.backward_flops) / 3e10


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_is_left_of_who_leaves_is_not_trained_on(family: str, bert: Base, llama: Base) -> None:
    """It leaves while the first of three mini-batches is under way: that one is done, the others lack its samples."""
    base = {"bert": bert, "llama": llama}[family]
    arriving = [sent(base, i, samples=4, tokens=8) for i in range(3)]
    server, trained = server_for(base, fleet_of(3)), list[Activations]()
    with noting(module, "train", lambda _server, batch, _plan: trained.append(batch)):
        answered = serve(server, pooled(), arriving, leaving={2.0 + seconds_of(4, 8) / 2: "device-1"})
    drawn = mini_batches(12, 4, (0, 0, 0))
    left = [drawn[0], *([place for place in places if place // 4 != 1] for places in drawn[1:])]
    assert [len(batch.h_BTD) for batch in trained] == [len(places) for places in left]
    assert 0 < sum(map(len, left)) < 12
    assert any(place // 4 == 1 for place in drawn[0]), "or nothing of it was trained on"
    rows = torch.cat([batch.h_BTD for batch in arriving])
    for batch, places in zip(trained, left, strict=True):
        assert torch.equal(batch.h_BTD, rows[places])
    assert [answer.device for _, answer in answered] == ["device-0", "device-2"]
    hand = ByHand(base, arriving, left, learning_rate(0, 0))
    for _, answer in answered:
        assert answer.grad_BTD is not None
        torch.testing.assert_close(answer.grad_BTD, hand.own_grads[answer.device], rtol=1e-3, atol=1e-6)
    assert server.ledger.take_tallies()["device-1"].weight == 0


def test_nothing_is_left_when_everybody_has_gone(bert: Base) -> None:
    events: list[Event] = []
    at = 1.0 + seconds_of(4, 8) / 2
    arriving = [sent(bert, i, samples=4, tokens=8) for i in range(2)]
    server = server_for(bert, fleet_of(2), events)
    assert serve(server, pooled(), arriving, leaving={at: "device-0", at + 1e-9: "device-1"}) == []
    assert len(events) == 1, "the one that was under way"
    assert {tally.weight for tally in server.ledger.take_tallies().values()} == {0}


def test_who_leaves_before_the_pool_is_full_is_not_in_it(bert: Base) -> None:
    one, other = server_for(bert, fleet_of(3)), server_for(bert, fleet_of(3))
    kept = serve(one, pooled(), unequal(bert), leaving={1.5: "device-1"})
    first, _, third = unequal(bert)
    without = plan_of(3)
    only = replace(without, devices=(without.devices[0], without.devices[2]))
    assert_same_answers(kept, serve(other, pooled(), [first, third], plan=only))
    assert_same_adapters(one, other)


# ------------------------------------------------------------------ what it takes, keeps and refuses


def test_a_pool_gives_back_what_is_at_each_place(bert: Base) -> None:
    """A gradient that says where it was: sample by sample it is found where the sample was."""
    arrived = unequal(bert)
    pool = Pool(arrived)
    for places in mini_batches(len(pool), 4, (1, 2, 3)):
        batch = merge(pool.samples(places))
        assert batch.device == SHARED
        pool.put(places, 1.0, batch.h_BTD * len(places))
    for batch, loss, grad_BTD in pool.answers(()):
        assert loss == pytest.approx(1.0)
        assert grad_BTD is not None
        first = places_of(arrived, batch.device)[0]
        sizes = {place: len(places) for places in mini_batches(len(pool), 4, (1, 2, 3)) for place in places}
        for row, (sample_TD, own_TD) in enumerate(zip(grad_BTD, batch.h_BTD, strict=True)):
            torch.testing.assert_close(sample_TD, own_TD * (sizes[first + row] ** 2 / len(batch.h_BTD)))


def test_memory_is_one_mini_batch_and_the_pool_twice() -> None:
    asked: list[int] = []

    class Noting(FlatCosts):
        def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
            asked.append(num_samples)
            return super().server(plan, num_samples, num_tokens)

    costs: Any = Noting(3)
    plan = RoundPlan(0, tuple(DevicePlan(f"device-{i}", 1, batch_size=2 + i) for i in range(3)))
    need = pooled().server_bytes(plan, costs, 10)
    assert asked == [3], "nine samples in three mini-batches of at most four"
    assert need == costs.server(plan.devices[0], 3, 10).memory_bytes + 2 * costs.activation_bytes(9, 10)
    assert pooled(server_batch=100).server_bytes(plan, costs, 10) > 0
    assert asked[-1] == 9, "no more than there are"


def test_it_carries_nothing() -> None:
    step = pooled()
    assert step.state() == State()
    step.load(State())


@pytest.mark.parametrize("size", [0, -3])
def test_a_mini_batch_without_a_sample(size: int) -> None:
    with pytest.raises(ConfigError, match=rf"method.server_batch: expected at least 1, or null, got {size}\. Change"):
        pooled(server_batch=size)
