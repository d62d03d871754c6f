"""The engine: a loss is logits and the loss's own gradient, bit for bit; spans, steps, dropout, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.loss.loss_utils import ForCausalLMLoss

from bases import moved_adapter, open_base
from cutlayer.errors import DivergedError
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.loss import Learned
from cutlayer.model.part import model_inputs
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.scope import shared
from cutlayer.server.adapters import Adapters
from cutlayer.server.engine import Engine, Graph, Span
from cutlayer.server.owners import SHARED, one_per_device
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations
from ends import activations_for
from turns import CASES

ModelMaker = Callable[[str, str], Path]


def engine_of(base: Base, *cuts: int, seed: int = 0) -> tuple[Engine, Adapters]:
    """An engine in a round of devices at these cuts, each with a server adapter that has been trained."""
    settings = TrainSettings(OptimizerSettings(), seed=seed)
    adapters = Adapters(base, moved_adapter(base), settings, shared)
    devices = tuple(DevicePlan(f"device-{i}", cut) for i, cut in enumerate(cuts))
    adapters.open(RoundPlan(0, devices), one_per_device)
    return Engine(base, adapters, settings), adapters


def own_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of whoever has all logits: of texts at the learned positions. Transformers sums zeros between them."""
    if labels.dim() == 1:
        return cross_entropy(logits, labels.long())
    learned = Learned.of(labels.long())
    loss = learned.loss(logits.flatten(0, 1).index_select(0, learned.positions_N)[None])
    others = ForCausalLMLoss(logits.detach(), labels.long(), vocab_size=logits.shape[-1])
    torch.testing.assert_close(loss.detach(), others, rtol=1e-5, atol=1e-6)
    return loss


def by_loss(base: Base, cut: int, batch: Activations) -> tuple[float, Tensor | None, Adapter]:
    engine, adapters = engine_of(base, cut)
    graph = engine.loss("device-0", engine.span(cut, None), batch)
    loss = graph.value
    return loss, graph.back(), gradients(adapters)


def by_logits(base: Base, cut: int, batch: Activations) -> tuple[float, Tensor | None, Adapter]:
    engine, adapters = engine_of(base, cut)
    graph = engine.logits("device-0", engine.span(cut, None), batch)
    leaf = graph.output.detach().requires_grad_()
    loss = own_loss(leaf, batch.labels)
    loss.backward()
    return float(loss.detach()), graph.back(leaf.grad), gradients(adapters)


def gradients(adapters: Adapters, owner: str = "device-0") -> Adapter:
    parameters = adapters.trainable(owner).parameters
    assert [name for name, parameter in parameters.items() if parameter.grad is None] == []
    return {name: parameter.grad.clone() for name, parameter in parameters.items()}


def assert_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    (loss, grad_BTD, grads), (other_loss, other_grad_BTD, other_grads) = one, other
    assert loss == other_loss
    assert (grad_BTD is None) == (other_grad_BTD is None)
    assert grad_BTD is None or torch.equal(grad_BTD, other_grad_BTD)
    assert grads.keys() == other_grads.keys()
    assert [name for name in grads if not torch.equal(grads[name], other_grads[name])] == []


# ------------------------------------------------------------------ forward and back


@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_loss_is_logits_and_the_losses_own_gradient(family: str, task: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, task), task)
    for cut in (0, 2):
        batch = activations_for(base, random_batch(task), cut)
        found = by_loss(base, cut, batch)
        assert_same(found, by_logits(base, cut, batch))
        assert (found[1] is None) == (cut == 0), "below the lowest cut nothing waits for a gradient"


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
@pytest.mark.parametrize(
    "changes",
    [{"base_dropout": True, "lora": LoraSettings(dropout=0.1)}, {"dtype": "bf16"}, {"checkpoint_server": True}],
    ids=str,
)
def test_it_is_so_with_dropout_in_bf16_and_recomputed(
    changes: dict[str, Any], task: str, tiny_model: ModelMaker
) -> None:
    base = open_base(tiny_model("llama", task), task, **changes)
    batch = activations_for(base, random_batch(task), 1)
    assert_same(by_loss(base, 1, batch), by_logits(base, 1, batch))


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


BATCH = random_batch("classification")


def test_the_loss_is_that_of_the_server_part(bert: Base) -> None:
    engine, adapters = engine_of(bert, 1)
    batch = activations_for(bert, BATCH, 1)
    graph = engine.loss("device-0", engine.span(1, None), batch)
    part = bert.server_part(1)
    part.use(adapters.trainable("device-0").values())
    assert graph.value == float(part.loss(batch.h_BTD, batch.mask_BT, batch.labels.long()).detach())
    assert not batch.h_BTD.requires_grad, "what came in is not trained on"
    assert graph.input_BTD.data_ptr() == batch.h_BTD.data_ptr(), "and not copied"


def test_a_share_of_a_loss_is_as_much_of_its_gradient_and_parts_add_up(bert: Base) -> None:
    batch = activations_for(bert, BATCH, 1)
    whole = by_loss(bert, 1, batch)
    engine, adapters = engine_of(bert, 1)
    for share in (0.25, 0.75):
        graph = engine.loss("device-0", engine.span(1, None), batch)
        grad_BTD = graph.back(share)
        assert grad_BTD is not None
        torch.testing.assert_close(grad_BTD, share * whole[1])
    for name, gradient in gradients(adapters).items():
        torch.testing.assert_close(gradient, whole[2][name])


def test_a_graph_keeps_the_adapter_that_it_was_made_with(bert: Base) -> None:
    """Two graphs on one base, followed back in either order."""
    engine, adapters = engine_of(bert, 1, 1)
    batches = [activations_for(bert, random_batch("classification", seed=i), 1, device=f"device-{i}") for i in range(2)]
    graphs = [engine.loss(batch.device, engine.span(1, None), batch) for batch in batches]
    first, second = (graph.back() for graph in graphs)
    for index, (batch, grad_BTD) in enumerate(zip(batches, (first, second), strict=True)):
        alone = by_loss(bert, 1, replace(batch, device="device-0"))
        assert_same((alone[0], grad_BTD, gradients(adapters, f"device-{index}")), alone)


def test_a_gradient_has_the_outputs_shape_or_is_a_number() -> None:
    leaf = torch.ones(2, 3, requires_grad=True)
    assert torch.equal(_twice(leaf).back(torch.full((2, 3), 5.0)), torch.full((2, 3), 10.0))  # type: ignore[arg-type]
    leaf.grad = None
    assert torch.equal(_twice(leaf).back(0.5), torch.ones(2, 3))  # type: ignore[arg-type]


def _twice(leaf: Tensor) -> Graph:
    return Graph(leaf, 2 * leaf)


# ------------------------------------------------------------------ spans


def test_a_span_knows_whether_something_below_it_trains(bert: Base) -> None:
    engine, _ = engine_of(bert, 1)
    assert engine.span(2, None) == Span(2, None, None, trains_below=True)
    assert engine.span(0, None) == Span(0, None, None, trains_below=False)
    assert engine.span(2, frozenset({2})) == Span(2, None, frozenset({2}), trains_below=False)
    batch = activations_for(bert, BATCH, 2)
    engine, adapters = engine_of(bert, 2)
    graph = engine.loss("device-0", Span(2, None, None, trains_below=False), batch)
    assert graph.back() is None
    assert gradients(adapters).keys() == set(bert.server_names(2))


@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 3), (1, 3), (2, 2)])
def test_what_is_lifted_is_what_a_device_would_have_sent(first: int, end: int, bert: Base) -> None:
    engine, _ = engine_of(bert, first)
    batch = activations_for(bert, BATCH, first)
    h_BTD = engine.lift(Span(first, end), batch)
    part = bert.middle_part(first, end, frozenset())
    assert torch.equal(h_BTD, part.forward(batch.h_BTD, batch.mask_BT).detach())
    assert not h_BTD.requires_grad
    frozen = bert.device_part(end, frozenset())
    start = bert.device_part(first, frozenset())
    sent = replace(batch, h_BTD=start.forward(model_inputs(BATCH)).detach())
    assert torch.equal(engine.lift(Span(first, end), sent), frozen.forward(model_inputs(BATCH)).detach())


# ------------------------------------------------------------------ steps


def test_a_step_moves_one_owners_adapter(bert: Base) -> None:
    engine, adapters = engine_of(bert, 1, 1)
    start = adapters.trainable("device-1").adapter()
    batch = activations_for(bert, BATCH, 1)
    engine.loss("device-0", engine.span(1, None), batch).back()
    before = adapters.trainable("device-0").adapter()
    engine.step("device-0", 1e-2)
    after = adapters.trainable("device-0").adapter()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert all(torch.equal(value, start[name]) for name, value in adapters.trainable("device-1").adapter().items())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_says_whose_it_is(value: float, bert: Base) -> None:
    engine, _ = engine_of(bert, 1)
    engine.check_finite(1e30, "device-0", 3, 1)
    for device, who in (("device-0", "device device-0"), (SHARED, "all devices")):
        with pytest.raises(DivergedError) as error:
            engine.check_finite(value, device, 3, 1)
        assert str(error.value) == (
            f"{who}, round 3, step 1: expected a finite loss, got {value}. Lower the learning rate (--lr), or set "
            "train.clip."
        )
        assert (error.value.device, error.value.round, error.value.step) == (device, 3, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0**61, -3e38])
@pytest.mark.parametrize("where", ["adapter", "cut"])
def test_a_gradient_that_is_too_large_to_square_is_forgotten(where: str, value: float, bert: Base) -> None:
    """Finite losses have them: a norm of activations of 1e30 is finite, what it does backwards is not."""
    engine, adapters = engine_of(bert, 1)
    parameters = adapters.trainable("device-0").parameters
    grad_BTD = engine.loss("device-0", engine.span(1, None), activations_for(bert, BATCH, 1)).back()
    assert grad_BTD is not None
    engine.check_gradients(parameters, grad_BTD, "device-0", 3, 1)
    assert all(parameter.grad is not None for parameter in parameters.values())
    wrong = grad_BTD if where == "cut" else next(iter(parameters.values())).grad
    assert wrong is not None
    wrong.view(-1)[0] = value
    with pytest.raises(DivergedError, match="device device-0, round 3, step 1: expected gradients up to ") as e:
        engine.check_gradients(parameters, grad_BTD, "device-0", 3, 1)
    assert e.value.device == "device-0"
    assert all(parameter.grad is None for parameter in parameters.values()), "no later step has them"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_hidden_states_that_are_not_finite_go_nowhere(value: float, bert: Base) -> None:
    engine, _ = engine_of(bert, 1)
    h_BTD = torch.zeros(2, 3, 4)
    engine.check_hidden(h_BTD, "device-0", 3, 1)
    h_BTD[1, 2, 3] = value
    with pytest.raises(DivergedError, match="device device-0, round 3, step 1: expected finite hidden states"):
        engine.check_hidden(h_BTD, "device-0", 3, 1)


# ------------------------------------------------------------------ dropout


@pytest.mark.parametrize("what", ["loss", "logits"])
def test_dropout_is_drawn_for_the_part_of_the_step_of_the_device(what: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", base_dropout=True)
    batch = activations_for(base, BATCH, 1)

    def drawn(seed: int = 0, **changes: Any) -> Tensor:
        engine, _ = engine_of(base, 1, seed=seed)
        graph: Graph = getattr(engine, what)("device-0", engine.span(1, None), replace(batch, **changes))
        return graph.output.detach()

    torch.manual_seed(1)
    once = drawn()
    torch.manual_seed(2)
    assert torch.equal(once, drawn()), "whatever the global generator has been through"
    changed = [{"device": "device-1"}, {"round": 1}, {"step": 1}, {"micro_batch": 1, "micro_batches": 2}]
    others = [drawn(seed=1), *(drawn(**changes) for changes in changed)]
    assert not any(torch.equal(once, other) for other in others)


def test_what_is_lifted_drops_out_as_the_base_does_and_not_as_adapters_do(tiny_model: ModelMaker) -> None:
    folder = tiny_model("bert", "classification")
    still = open_base(folder, "classification", lora=LoraSettings(dropout=0.5))
    drops = open_base(folder, "classification", base_dropout=True)
    batch = activations_for(still, BATCH, 0)

    def lifted(base: Base, **changes: Any) -> Tensor:
        return engine_of(base, 0)[0].lift(Span(0, BLOCKS), replace(batch, **changes))

    assert torch.equal(lifted(still), lifted(still, step=1))
    assert torch.equal(lifted(drops), lifted(drops))
    assert not torch.equal(lifted(drops), lifted(drops, step=1))
    assert not torch.equal(lifted(drops), lifted(still))
