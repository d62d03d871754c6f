"""A machine that runs blocks: what comes out is what the unsplit model makes, and what does not fit is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bases import moved_adapter
from cutlayer.errors import Refused
from cutlayer.fleet.clock import run_virtual
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.model.base import Base
from cutlayer.server.span import SpanServer, span_cost
from cutlayer.testing.playground import FlatCosts, tiny_base
from cutlayer.types import Event
from cutlayer.wire.messages import SpanAnswer, SpanCall


def server(base: Base, blocks: tuple[int, int] = (0, 3), events: list[Event] | None = None) -> SpanServer:
    machine = ModelledMachine("gpu", 1e9, (events if events is not None else []).append)
    return SpanServer("gpu", base, machine, FlatCosts(3), blocks, 12)


def call(base: Base, first: int, end: int, **changes: Any) -> SpanCall:
    generator = torch.Generator().manual_seed(0)
    h_BTD, grad_BTD = torch.randn(2, 2, 6, 16, generator=generator)
    below, mine = set(base.device_names(first)), base.device_names(end)
    adapter = moved_adapter(base)
    tensors = {name: adapter[name] for name in mine if name not in below}
    made = SpanCall("run", 0, 1, "phone", first, end, h_BTD, torch.ones(2, 6) > 0, grad_BTD, True, tensors)
    return replace(made, **changes)


def ask(server: SpanServer, call: SpanCall) -> SpanAnswer:
    return run_virtual(server.answer(call))


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "causal-lm")])
def test_two_spans_are_one(family: str, task: Any) -> None:
    """Forward, gradient of what went in, gradients of what trains: bit for bit, however blocks are divided."""
    base = tiny_base(family, task)
    whole, low, high = call(base, 0, 3), call(base, 0, 1), call(base, 1, 3)
    h_BTD = ask(server(base), replace(low, grad_BTD=None)).h_BTD
    assert h_BTD is not None
    high = replace(high, h_BTD=h_BTD)
    out = ask(server(base), replace(whole, grad_BTD=None)).h_BTD
    assert torch.equal(ask(server(base), replace(high, grad_BTD=None)).h_BTD, out)  # type: ignore[arg-type]
    upper = ask(server(base), high)
    lower = ask(server(base), replace(low, grad_BTD=upper.grad_BTD))
    both = ask(server(base), whole)
    assert isinstance(both.grad_BTD, Tensor)
    assert torch.equal(both.grad_BTD, lower.grad_BTD)  # type: ignore[arg-type]
    assert both.gradients.keys() == whole.tensors.keys() == lower.gradients.keys() | upper.gradients.keys()
    for name, gradient in (lower.gradients | upper.gradients).items():
        assert torch.equal(gradient, both.gradients[name])
        assert gradient.abs().max() > 0


def test_it_keeps_nothing() -> None:
    """An answer does not depend on the calls before it."""
    base = tiny_base()
    one, other = call(base, 0, 2), call(base, 0, 2, tensors={})
    first = ask(server(base), one)
    busy = server(base)
    for made in (other, replace(one, h_BTD=one.h_BTD + 1), one):
        last = ask(busy, made)
    assert torch.equal(first.grad_BTD, last.grad_BTD)  # type: ignore[arg-type]
    assert all(torch.equal(first.gradients[name], last.gradients[name]) for name in first.gradients)
    assert not ask(busy, other).gradients
    assert ask(busy, replace(one, below=False)).grad_BTD is None


def test_a_backward_pass_runs_forward_again() -> None:
    base, events = tiny_base(), list[Event]()
    one = server(base, events=events)
    back = call(base, 1, 3)
    ask(one, replace(back, grad_BTD=None))
    ask(one, back)
    cost = span_cost(FlatCosts(3), back, base)  # type: ignore[arg-type]
    assert cost.forward_flops == pytest.approx(2e6 * 12)
    assert [event.what for event in events] == ["forward", "backward"]
    assert events[0].flops == pytest.approx(cost.forward_flops)
    assert events[1].flops == pytest.approx(cost.forward_flops + cost.backward_flops)
    assert {event.peer for event in events} == {"phone"}


WRONG: dict[str, dict[str, Any]] = {
    "blocks above": {"end": 3},
    "blocks below": {"first": 0},
    "no blocks": {"first": 2, "end": 2},
    "no batch": {"h_BTD": torch.zeros(0, 6, 16)},
    "a long text": {"h_BTD": torch.zeros(2, 13, 16), "mask_BT": torch.ones(2, 13) > 0},
    "two dimensions": {"h_BTD": torch.zeros(2, 6)},
    "another width": {"h_BTD": torch.zeros(2, 6, 15)},
    "another dtype": {"h_BTD": torch.zeros(2, 6, 16, dtype=torch.float64)},
    "another mask": {"mask_BT": torch.ones(2, 5) > 0},
    "a mask of numbers": {"mask_BT": torch.ones(2, 6)},
    "another gradient": {"grad_BTD": torch.zeros(2, 6, 15)},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused(what: str) -> None:
    base = tiny_base()
    with pytest.raises(Refused, match="span gpu: expected"):
        ask(server(base, (1, 2)), replace(call(base, 1, 2), **WRONG[what]))


def test_foreign_missing_and_misshapen_tensors_are_refused() -> None:
    base = tiny_base()
    good = call(base, 1, 2)
    assert ask(server(base, (1, 2)), good).gradients.keys() == good.tensors.keys()
    name, value = next(iter(good.tensors.items()))
    others = call(base, 0, 1).tensors
    for tensors in (
        {**good.tensors, **others},
        {key: one for key, one in good.tensors.items() if key != name},
        {**good.tensors, name: value[:, :-1]},
        {**good.tensors, name: value.double()},
        {**good.tensors, name: value[0]},
        {**good.tensors, name: torch.cat([value, value])},
    ):
        with pytest.raises(Refused):
            ask(server(base, (1, 2)), replace(good, tensors=tensors))


def test_answers_of_two_devices_at_a_time() -> None:
    base = tiny_base()
    one, calls = server(base), [call(base, 0, 2, device=name) for name in ("a", "b")]

    async def both() -> list[SpanAnswer]:
        return await asyncio.gather(*map(one.answer, calls))

    answers = run_virtual(both())
    assert [answer.device for answer in answers] == ["a", "b"]
    assert torch.equal(answers[0].grad_BTD, answers[1].grad_BTD)  # type: ignore[arg-type]
