"""EPSL's step against its formulas, one sample at a time and nothing batched; who stands with whom; what it costs.

Shapes: B batch, m shared samples, T tokens, D hidden size, K classes or tokens of the vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from bases import moved_adapter, open_base
from cutlayer.errors import DivergedError
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.model.base import Base
from cutlayer.model.cost import cost_model
from cutlayer.model.imagined import FUSED_ATTENTION
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.ledger import Tally
from cutlayer.server.server import Server
from cutlayer.server.steps.epsl import epsl, last_layer_gradient, num_shared, pair_labels, pair_lengths
from cutlayer.server.steps.merged import merged
from cutlayer.server.steps.step import ServerStep
from cutlayer.state import State
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, DevicePlan, Event, Flow, RoundPlan
from cutlayer.wire.messages import Activations, Gradients
from ends import activations_for, server_for
from turns import by_turns

ModelMaker = Callable[[str, str], Path]
CUT = 1
SIZES = (4, 6, 5)
EACH = [(variant, phi) for variant in ("mean", "sample", "wire") for phi in (0.25, 0.5, 1.0)]
MODELS = {"bert": "classification", "llama": "causal-lm", "qwen2": "classification"}
"""An encoder, texts, and a decoder whose head looks at the last token."""


@pytest.fixture(params=MODELS)
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    task = MODELS[request.param]
    return open_base(tiny_model(request.param, task), task)


@pytest.fixture
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def sent(base: Base, device: int, *, samples: int, tokens: int, cut: int = CUT, seed: int | None = None) -> Activations:
    batch = random_batch(base.settings.task, seed=device if seed is None else seed, samples=samples, tokens=tokens)
    return activations_for(base, batch, cut, device=f"device-{device}")


def unequal(base: Base) -> list[Activations]:
    """Neither samples nor lengths are alike."""
    return [sent(base, i, samples=size, tokens=9 + i) for i, size in enumerate(SIZES)]


def plan_of(num_devices: int, cut: int = CUT) -> RoundPlan:
    return RoundPlan(0, tuple(DevicePlan(f"device-{i}", cut, 4, local_steps=1) for i in range(num_devices)))


def server_of(base: Base, num_devices: int, events: list[Event] | None = None) -> Server:
    """A server whose adapter is not where it began: B is not zero."""
    server = server_for(base, fleet_of(num_devices), events)
    server.adapter = moved_adapter(base)
    return server


def serve(
    server: Server, step: ServerStep, arrived: Sequence[Activations], *, leaving: Sequence[str] = (), cut: int = CUT
) -> tuple[list[Gradients], Adapter]:
    """The answers, and the gradients with which the adapter would be stepped."""
    answered: list[Gradients] = []
    gradients: Adapter = {}

    def keep(owner: str, rate: float) -> None:
        assert rate == server.learning_rate(0, 0)
        parameters = server.adapters.trainable(owner).parameters
        gradients.update({name: value.grad.clone() for name, value in parameters.items() if value.grad is not None})

    server.engine.step = keep  # type: ignore[method-assign]

    async def reply(answer: Gradients) -> None:
        answered.append(answer)

    async def program() -> None:
        server.begin(plan_of(len(arrived) + len(leaving), cut), step.owner)
        arrivals = Arrivals(server.ledger.plan, server.forecast, 12)
        for at, activations in enumerate(arrived):
            asyncio.get_running_loop().call_later(1.0 + at, arrivals.put, activations)
        for device in leaving:
            asyncio.get_running_loop().call_later(9.0, arrivals.leave, device)
        await step(server, arrivals, reply)
        assert now() >= len(arrived)

    run_virtual(program())
    return answered, gradients


# ------------------------------------------------------------------ the formulas, written down again


def place(base: Base, values_T: Tensor, longest: int) -> Tensor:
    """A text's tokens on the common ones: from the first one in an encoder, up to the last one in a decoder."""
    missing = values_T.new_zeros(longest - len(values_T), *values_T.shape[1:])
    return torch.cat([values_T, missing] if base.family.name == "bert" else [missing, values_T])


def taken(base: Base, common_T: Tensor, num_tokens: int) -> Tensor:
    return common_T[:num_tokens] if base.family.name == "bert" else common_T[len(common_T) - num_tokens :]


class Formulas:
    """The formulas of related work, with our choices: per sample, in 32 bits, by autograd."""

    def __init__(self, base: Base, arrived: Sequence[Activations], chosen: Sequence[Sequence[int]]) -> None:
        self.base, self.arrived, self.chosen = base, arrived, chosen
        adapter = moved_adapter(base)
        self.parameters = {name: nn.Parameter(adapter[name].clone()) for name in base.server_names(CUT)}
        self.part = base.server_part(CUT)
        self.part.use(self.parameters)
        self.weight = sum(part.weight for part in arrived)
        self.lambdas = [part.weight / self.weight for part in arrived]
        lengths = [part.mask_BT.sum(1).tolist() for part in arrived]
        self.texts = [
            [part.h_BTD[j, :length].clone().requires_grad_() for j, length in enumerate(own)]
            for part, own in zip(arrived, lengths, strict=True)
        ]

    def logits(self, text_TD: Tensor) -> Tensor:
        return self.part.logits(text_TD[None], torch.ones(1, len(text_TD), dtype=torch.bool))[0]

    def summed_loss(self, logits: Tensor, i: int, j: int) -> Tensor:
        labels = self.arrived[i].labels[j].long()
        if labels.dim() == 0:
            return cross_entropy(logits[None], labels[None])
        return cross_entropy(logits[:-1], labels[1 : len(logits)], reduction="sum", ignore_index=-100)

    def z(self, i: int, j: int) -> Tensor:
        logits = self.logits(self.texts[i][j].detach()).detach().requires_grad_()
        return torch.autograd.grad(self.summed_loss(logits, i, j) / self.weight, logits)[0]

    def followed(self, at: str | Sequence[int]) -> tuple[list[list[Tensor]], Adapter]:
        """By device and sample what goes down; gradients of the adapter.

        Args:
          at: mean, wire, or who was drawn for each that is shared.
        """
        everyone = range(len(self.arrived))
        alone = [(i, j) for i in everyone for j in range(len(self.texts[i])) if j not in self.chosen[i] or at == "wire"]
        objective = sum(
            (self.summed_loss(self.logits(self.texts[i][j]), i, j) / self.weight for i, j in alone), torch.zeros(())
        )
        points = []
        for number in range(len(self.chosen[0])) if at != "wire" else ():
            rows = [own[number] for own in self.chosen]
            texts = [self.texts[i][rows[i]].detach() for i in everyone]
            longest = max(map(len, texts))
            gradients = [self.z(i, rows[i]) for i in everyone]
            if self.base.settings.task == "causal-lm":
                gradients = [place(self.base, gradient, longest) for gradient in gradients]
            mean = sum(self.lambdas[i] * gradients[i] for i in everyone)
            assert isinstance(mean, Tensor)
            if at == "mean":
                there = [
                    place(self.base, torch.ones(len(text), 1), longest) * self.lambdas[i]
                    for i, text in enumerate(texts)
                ]
                summed = sum(self.lambdas[i] * place(self.base, texts[i], longest) for i in everyone)
                point = (summed / sum(there)).requires_grad_()
            else:
                point = texts[at[number]].clone().requires_grad_()
                mean = taken(self.base, mean, len(point)) if self.base.settings.task == "causal-lm" else mean
            objective = objective + (len(self.arrived) * mean * self.logits(point)).sum()
            points.append((point, longest))
        objective.backward()
        down = [[text.grad for text in own] for own in self.texts]
        for number, (point, longest) in enumerate(points):
            assert point.grad is not None
            common = place(self.base, point.grad, longest)
            for i in everyone:
                own = taken(self.base, common, len(self.texts[i][self.chosen[i][number]]))
                down[i][self.chosen[i][number]] = own / len(self.arrived)
        if at == "wire":
            self.average(down)
        scaled = [
            [row * (self.weight / part.weight) for row in own] for own, part in zip(down, self.arrived, strict=True)
        ]
        return scaled, {name: value.grad for name, value in self.parameters.items() if value.grad is not None}

    def average(self, down: list[list[Any]]) -> None:
        for rows in zip(*self.chosen, strict=True):
            own = [down[i][j] for i, j in enumerate(rows)]
            longest = max(map(len, own))
            common = sum(self.lambdas[i] * place(self.base, row, longest) for i, row in enumerate(own))
            for i, j in enumerate(rows):
                down[i][j] = taken(self.base, common, len(own[i]))


def assert_follows(
    base: Base,
    arrived: Sequence[Activations],
    answered: Sequence[Gradients],
    gradients: Adapter,
    chosen: Sequence[Sequence[int]],
    at: str | Sequence[int],
) -> None:
    down, expected = Formulas(base, arrived, chosen).followed(at)
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=2e-4, atol=2e-6)
    for answer, own in zip(answered, down, strict=True):
        assert answer.grad_BTD is not None
        for row_TD, expected_TD in zip(answer.grad_BTD, own, strict=True):
            torch.testing.assert_close(row_TD[: len(expected_TD)], expected_TD, rtol=2e-4, atol=2e-6)
            assert not row_TD[len(expected_TD) :].any()


@pytest.mark.parametrize(("variant", "phi"), list(by_turns(EACH, one_of=2)))
def test_the_step_is_its_formulas(variant: str, phi: float, base: Base) -> None:
    arrived = unequal(base)
    answered, gradients = serve(server_of(base, 3), epsl(phi, variant=variant, pairing=False, seed=5), arrived)
    shared = num_shared(phi, SIZES)
    drawn = np.random.default_rng((5, 0, 0)).integers(3, size=shared).tolist()
    at = drawn if variant == "sample" else variant
    assert_follows(base, arrived, answered, gradients, [list(range(shared))] * 3, at)


@pytest.mark.parametrize("variant", ["mean", "wire"])
def test_paired_samples_get_their_own_gradients_back(variant: str, base: Base) -> None:
    arrived = unequal(base)
    answered, gradients = serve(server_of(base, 3), epsl(0.75, variant=variant, seed=7), arrived)
    rng = np.random.default_rng((7, 0, 0))
    if base.settings.task == "classification":
        chosen = pair_labels([part.labels.tolist() for part in arrived], 3, rng)
    else:
        chosen = pair_lengths([part.mask_BT.sum(1).tolist() for part in arrived], 3, rng)
    assert chosen != [[0, 1, 2]] * 3
    assert_follows(base, arrived, answered, gradients, chosen, variant)


@pytest.mark.parametrize("variant", ["mean", "sample", "wire"])
def test_phi_0_is_the_merged_step(variant: str, base: Base) -> None:
    arrived = unequal(base)
    answered, gradients = serve(server_of(base, 3), epsl(0.0, variant=variant), arrived)
    expected, expected_gradients = serve(server_of(base, 3), merged(), arrived)
    assert [answer.loss for answer in answered] == [answer.loss for answer in expected]
    for answer, other in zip(answered, expected, strict=True):
        assert answer.grad_BTD is not None
        assert other.grad_BTD is not None
        assert torch.equal(answer.grad_BTD, other.grad_BTD)
    assert all(torch.equal(gradients[name], value) for name, value in expected_gradients.items())


@pytest.mark.parametrize(("variant", "phi"), list(by_turns(EACH, one_of=2)))
def test_of_equal_batches_any_phi_is_phi_0(variant: str, phi: float, base: Base) -> None:
    """On the wire to the last bit; elsewhere up to the rounding of batches of another size."""
    arrived = [sent(base, i, samples=4, tokens=10, seed=9) for i in range(3)]
    answered, gradients = serve(server_of(base, 3), epsl(phi, variant=variant, pairing=False), arrived)
    expected, expected_gradients = serve(server_of(base, 3), merged(), arrived)
    exact: dict[str, float] = {"rtol": 0.0, "atol": 0.0} if variant == "wire" else {"rtol": 1e-4, "atol": 1e-6}
    for answer, other in zip(answered, expected, strict=True):
        torch.testing.assert_close(answer.grad_BTD, other.grad_BTD, **exact)
        assert answer.loss == pytest.approx(other.loss, rel=1e-6)
    for name, value in expected_gradients.items():
        torch.testing.assert_close(gradients[name], value, **exact)


def test_auto_is_mean_for_classes_and_wire_for_texts(base: Base) -> None:
    arrived = unequal(base)
    other = "wire" if base.settings.task == "causal-lm" else "mean"
    _, gradients = serve(server_of(base, 3), epsl(0.5), arrived)
    _, expected = serve(server_of(base, 3), epsl(0.5, variant=other), arrived)
    assert all(torch.equal(gradients[name], value) for name, value in expected.items())


def test_who_left_is_not_shared_with(bert: Base) -> None:
    """One device of two is alone, and what it gets is what it would get of a merged step."""
    arrived = unequal(bert)[:1]
    answered, _ = serve(server_of(bert, 2), epsl(1.0), arrived, leaving=["device-1"])
    expected, _ = serve(server_of(bert, 1), merged(), arrived)
    assert len(answered) == 1
    assert answered[0].grad_BTD is not None
    assert expected[0].grad_BTD is not None
    assert torch.equal(answered[0].grad_BTD, expected[0].grad_BTD)


@pytest.mark.parametrize("variant", ["mean", "wire"])
def test_frozen_devices_get_no_gradient(variant: str, bert: Base) -> None:
    arrived = [sent(bert, i, samples=4, tokens=8, cut=0) for i in range(2)]
    answered, gradients = serve(server_of(bert, 2), epsl(0.5, variant=variant), arrived, cut=0)
    assert [answer.grad_BTD for answer in answered] == [None, None]
    assert gradients


@pytest.mark.parametrize("phi", [0.5, 1.0])
def test_a_loss_that_is_not_finite(phi: float, bert: Base) -> None:
    arrived = unequal(bert)
    arrived[1].h_BTD[0, 0, 0] = float("nan")
    with pytest.raises(DivergedError, match="all devices, round 0, step 0: expected a finite loss, got nan"):
        serve(server_of(bert, 3), epsl(phi, pairing=False), arrived)


def test_texts_of_which_nothing_is_predicted(tiny_model: ModelMaker) -> None:
    """Shared, they add nothing, and their part of the loss is no 0 / 0."""
    llama = open_base(tiny_model("llama", "causal-lm"), "causal-lm")
    parts = [sent(llama, i, samples=3, tokens=8) for i in range(2)]
    for part in parts:
        part.labels[0] = -100
    arrived = [replace(part, weight=int((part.labels[:, 1:] != -100).sum())) for part in parts]
    answered, gradients = serve(server_of(llama, 2), epsl(0.3, variant="mean", pairing=False), arrived)
    expected, expected_gradients = serve(server_of(llama, 2), merged(), arrived)
    for name, value in expected_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-6)
    for answer, other in zip(answered, expected, strict=True):
        torch.testing.assert_close(answer.grad_BTD, other.grad_BTD, rtol=1e-4, atol=1e-6)


def test_the_last_layer_gradient_of_classes_is_softmax_less_one_hot(bert: Base) -> None:
    part = sent(bert, 0, samples=3, tokens=8)
    logits_BK = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    loss, z_BK = last_layer_gradient(logits_BK, part, 0.5)
    labels = part.labels.long()
    torch.testing.assert_close(z_BK, (logits_BK.softmax(-1) - torch.eye(3)[labels]) / 3 * 0.5)
    assert loss == pytest.approx(float(cross_entropy(logits_BK, labels)) / 2)


# ------------------------------------------------------------------ who stands with whom


@pytest.mark.parametrize("seed", range(5))
def test_each_sample_is_shared_at_most_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = [rng.integers(4, size=size).tolist() for size in (7, 9, 8)]
    for num in (1, 4, 7):
        for chosen in (pair_labels(labels, num, rng), pair_lengths(labels, num, rng)):
            for own, mine in zip(labels, chosen, strict=True):
                assert len(mine) == num
                assert len(set(mine)) == num
                assert set(mine) <= set(range(len(own)))
    assert sorted(pair_labels(labels, 7, rng)[0]) == list(range(7)), "the smallest batch is shared whole"


@pytest.mark.parametrize("seed", range(5))
def test_as_many_agree_as_can(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = [rng.integers(3, size=12).tolist() for _ in range(4)]
    most = sum(min(own.count(label) for own in labels) for label in range(3))
    chosen = pair_labels(labels, 12, rng)
    rows = list(zip(*([own[j] for j in mine] for own, mine in zip(labels, chosen, strict=True)), strict=True))
    agreed = [len(set(row)) == 1 for row in rows]
    assert sum(agreed) == most
    assert agreed == sorted(agreed, reverse=True), "those come first, which a smaller share takes"


def test_equals_are_drawn_by_the_seed() -> None:
    labels = [[0] * 6, [0] * 6]
    one, same, other = (pair_labels(labels, 3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same != other


def test_texts_of_like_length_stand_together() -> None:
    lengths = [[5, 9, 1, 7], [2, 8, 6, 4]]
    chosen = pair_lengths(lengths, 4, np.random.default_rng(0))
    assert {(lengths[0][i], lengths[1][j]) for i, j in zip(*chosen, strict=True)} == {(9, 8), (7, 6), (5, 4), (1, 2)}


# ------------------------------------------------------------------ what it costs


@pytest.mark.parametrize(("variant", "extra"), [("mean", 2), ("sample", 2), ("wire", 0)])
def test_flops_and_what_a_broadcast_saves(variant: str, extra: int, bert: Base) -> None:
    """Four devices of batches of four, half of them shared: phi/C + 1 - phi of the backward pass."""
    events: list[Event] = []
    server = server_of(bert, 4, events)
    arrived = [sent(bert, i, samples=4, tokens=10) for i in range(4)]
    answered, _ = serve(server, epsl(0.5, variant=variant), arrived)
    [step] = events
    plan = plan_of(4).devices[0]
    forward = FlatCosts(3).server(plan, 16 + extra, 10).forward_flops
    backward = FlatCosts(3).server(plan, 16 if variant == "wire" else 10, 10).backward_flops
    assert step.flops == pytest.approx(forward + backward)
    assert step.peer is None
    facts = [tally.facts for _, tally in sorted(server.ledger.take_tallies().items())]
    assert sum(fact["server_backward_flops"] for fact in facts) == pytest.approx(backward)
    assert backward == pytest.approx(
        FlatCosts(3).server(plan, 16, 10).backward_flops * (1 if variant == "wire" else 0.5 / 4 + 0.5)
    )
    rows = 4 * 2 * 10 * 16  # what two samples' gradients are on a device's link
    assert [fact["repeated_bytes"] for fact in facts] == [0, rows, rows, rows]
    sent_bytes = sum(answer.grad_BTD.nbytes for answer in answered if answer.grad_BTD is not None)
    assert sent_bytes == 4 * rows * 2, "a device gets all of its rows"
    assert sent_bytes - 3 * rows == pytest.approx(sent_bytes * (0.5 / 4 + 0.5))


def test_with_nothing_shared_nothing_is_repeated(bert: Base) -> None:
    server = server_of(bert, 3)
    serve(server, epsl(0.0), unequal(bert))
    tallies: dict[str, Tally] = server.ledger.take_tallies()
    assert [tally.facts["repeated_bytes"] for tally in tallies.values()] == [0, 0, 0]
    assert [tally.steps for tally in tallies.values()] == [1, 1, 1]


@pytest.mark.parametrize("phi", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("variant", ["mean", "sample", "wire"])
def test_the_flops_are_those_that_are_computed(variant: str, phi: float, bert: Base) -> None:
    events: list[Event] = []
    server = server_of(bert, 3, events)
    server.costs = cost_model(bert.settings).of(lambda _plan: Flow())
    server.costs.server(plan_of(3).devices[0], 1, 12)  # it counts when it is first asked
    arrived = unequal(bert)
    with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counted:
        serve(server, epsl(phi, variant=variant), arrived)
    assert events[0].flops == pytest.approx(counted.get_total_flops(), rel=1e-9)


def test_memory_is_that_of_the_larger_step() -> None:
    costs: Any = FlatCosts(3)
    plan = RoundPlan(0, tuple(DevicePlan(f"device-{i}", 1, batch_size=4 + 2 * i) for i in range(3)))
    asked: list[int] = []

    class Noting(FlatCosts):
        def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Any:
            asked.append(num_samples)
            cost = super().server(plan, num_samples, num_tokens)
            return replace(cost, memory_bytes=1000 * num_samples)

    noting: Any = Noting(3)
    for variant, phi, steps in (("mean", 0.5, (2, 12)), ("sample", 1.0, (4, 6)), ("wire", 1.0, (0, 18))):
        asked.clear()
        need = epsl(phi, variant=variant).server_bytes(plan, noting, 10)
        assert tuple(asked) == steps
        assert need == 1000 * max(steps) + costs.activation_bytes(18, 10)
    assert epsl(1.0).server_bytes(plan, noting, 10) == epsl(1.0, variant="wire").server_bytes(plan, noting, 10)


def test_it_carries_nothing() -> None:
    step = epsl(0.5)
    assert step.state() == State()
    step.load(State())
