"""The stream: who says what when, what runs at the same time, and what happens when somebody says something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.errors import ConfigError, WireError
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.base import Base
from cutlayer.policies.aggregate import Contribution
from cutlayer.rounds.round import Round
from cutlayer.rounds.stream import MIB, stream
from cutlayer.server.steps.stages import Stages
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.testing.tiny import random_batch
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Assignment, Finish, Message, Recall, Update
from ends import ScriptedLink, activations_for, server_for

ModelMaker = Callable[[str, str], Path]
FINISH = Finish("run", 1, "done")
RANKS = (0, 8, 8)


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def plan_of(device: str = "device-0", *, cut: int = 1, steps: int = 4) -> DevicePlan:
    return DevicePlan(device, cut, 4, steps, ranks=RANKS)


# ------------------------------------------------------------------ the server's end


def run_server(base: Base, said: dict[str, Sequence[Message]], **options: Any) -> tuple[list[Contribution], Any]:
    server = server_for(base, fleet_of(len(said)))
    server.adapter = base.initial_adapter(0, RANKS)
    plan = RoundPlan(0, tuple(plan_of(name, steps=2) for name in said), RANKS)
    links = {name: ScriptedLink(messages, seconds=1.0) for name, messages in said.items()}
    result = run_virtual(stream(**options).server_end(server, links, plan))  # type: ignore[arg-type]
    return result, (server, links)


def honest(base: Base, name: str, *, seed: int = 0) -> list[Message]:
    batches = [random_batch("classification", seed=seed + step) for step in range(2)]
    sent: list[Message] = [
        activations_for(base, batch, 1, device=name, step=step) for step, batch in enumerate(batches)
    ]
    return [*sent, Update("run", 0, name, {}, 0, 8, 8, 0.0, 0.0)]


def test_the_server_sends_an_assignment_and_no_more(bert: Base) -> None:
    said = {f"device-{i}": honest(bert, f"device-{i}", seed=10 * i) for i in range(2)}
    contributions, (server, links) = run_server(bert, said, cache=False)
    assert all([type(message) for message in link.messages] == [Assignment] for link in links.values())
    shared = contributions[-1]
    assert shared.adapter.keys() == server.adapter.keys()
    assert set(shared.weights.values()) == {16.0}
    tallies = server.ledger.take_tallies()
    assert {name: (t.steps, t.samples, t.weight) for name, t in tallies.items()} == dict.fromkeys(said, (2, 8, 8))


def test_a_loss_is_shared_by_weight(bert: Base) -> None:
    """The losses that devices are told add up to what the server lost."""
    said = {f"device-{i}": honest(bert, f"device-{i}", seed=10 * i) for i in range(2)}
    losses: list[float] = []
    backward = Stages.backward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "backward", lambda *given: losses.append(backward(*given)) or losses[-1])
        _, (server, _) = run_server(bert, said, cache=False, server_batch=3)
    tallies = server.ledger.take_tallies().values()
    assert len(losses) == 6
    assert sum(t.loss_sum for t in tallies) == pytest.approx(3 * sum(losses[:5]) + losses[5])


@pytest.mark.parametrize(
    ("said", "expected", "got"),
    [
        ("a batch twice", "Activations of step 1", "Activations"),
        ("no batch", "Activations of step 1", "Update"),
        ("too many", "an Update", "Activations"),
        ("a name", "Activations of step 1", "Recall"),
    ],
)
def test_the_server_believes_nothing_out_of_turn(said: str, expected: str, got: str, bert: Base) -> None:
    first, second, update = honest(bert, "device-0")
    name = Recall("run", 0, 1, "device-0", torch.tensor([0], dtype=torch.int32), 12)
    messages = {
        "a batch twice": [first, first],
        "no batch": [first, update],
        "too many": [first, second, second],
        "a name": [first, name],  # the server keeps nothing
    }
    with pytest.raises(BaseExceptionGroup) as error:
        run_server(bert, {"device-0": messages[said]}, cache=False)
    [wrong] = error.value.exceptions
    assert isinstance(wrong, WireError)
    assert f"device device-0: expected {expected}, got {got}. " in str(wrong)


def test_a_name_of_what_was_never_sent(bert: Base) -> None:
    name = Recall("run", 0, 0, "device-0", torch.tensor([7], dtype=torch.int32), 12)
    with pytest.raises(BaseExceptionGroup) as error:
        run_server(bert, {"device-0": [name]})
    [wrong] = error.value.exceptions
    assert "device device-0: expected a sample whose activations it has sent, got row 7." in str(wrong)


# ------------------------------------------------------------------ options


@pytest.mark.parametrize("name", ["window", "server_batch", "cache_mib", "stages", "micro_batches"])
def test_counts_begin_at_one(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^method\.{name}: expected at least 1, got 0\. Change method\.{name}\.$"):
        stream(**{name: 0})  # type: ignore[arg-type]


def test_what_is_stored_is_one_of_three() -> None:
    with pytest.raises(ConfigError, match=r"method\.cache_dtype: expected one of fp32, bf16, int8, got 'int4'"):
        stream(cache_dtype="int4")


def test_one_stage_has_nothing_to_put_off() -> None:
    with pytest.raises(ConfigError, match=r"method\.decomposed: expected method\.stages of at least 2, got 1"):
        stream(decomposed=True)


def test_memory_is_a_step_what_is_sent_and_the_cache() -> None:
    plan = RoundPlan(0, (plan_of("device-0", cut=1), plan_of("device-1", cut=2, steps=3)))
    costs = FlatCosts(3)

    def need(round: Round) -> int:
        return round.server_bytes(plan, costs, 10)

    step, sent = costs.server(plan.devices[0], 4, 10).memory_bytes, 7 * costs.activation_bytes(4, 10)
    assert need(stream(cache=False)) == step + sent
    assert need(stream(cache_mib=3)) == step + sent + 3 * MIB
