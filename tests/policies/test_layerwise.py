"""Layer by layer: three means of what was reached, one of them unbiased where all are alike, another where not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from cutlayer.errors import ConfigError
from cutlayer.policies.aggregate import Contribution, mean_per_block
from cutlayer.policies.layerwise import LEAST, RULES, Reach, layer_of, mean_per_layer, pieces_of
from cutlayer.testing.playground import FlatCosts
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import Adapter, DevicePlan, RoundPlan

DEVICES, LAYERS = 5, 6
DRAWS = 1000


def name(layer: int) -> str:
    return f"base_model.model.layers.{layer}.lora_A.weight"


def part(device: int, depth: int, values: Tensor) -> Contribution:
    """A device that reached so many layers from the output down."""
    adapter = {name(layer): values[device] for layer in range(LAYERS - depth, LAYERS)}
    return Contribution(adapter, dict.fromkeys(adapter, 1.0), device=f"device-{device}")


def plan_of(odds: Sequence[Sequence[float]]) -> RoundPlan:
    """A plan of devices with these chances to reach each layer, the lowest first."""
    devices = (DevicePlan(f"device-{index}").having(Reach(1.0, (*own, 1.0))) for index, own in enumerate(odds))
    return RoundPlan(0, tuple(devices))


def drawn(rule: str, odds: Sequence[Sequence[float]], depth: Callable[[np.random.Generator, int], int]) -> Tensor:
    """By how many standard errors the mean over many rounds is off the mean of all devices: by layer, the most."""
    rng, aggregate = np.random.default_rng(0), mean_per_layer(rule)
    values = torch.randn(DEVICES, 4, generator=torch.Generator().manual_seed(1))
    before = {name(layer): torch.full((4,), 0.3) for layer in range(LAYERS)}
    plan, found = plan_of(odds), []
    for _ in range(DRAWS):
        parts = [part(device, depth(rng, device), values) for device in range(DEVICES)]
        after = aggregate(before, [one for one in parts if one.adapter], plan)
        found.append(torch.stack([after[name(layer)] for layer in range(LAYERS)]))
    all_NLD = torch.stack(found).double()
    error = (all_NLD.mean(0) - values.double().mean(0)).abs()
    return (error / (all_NLD.std(0) / DRAWS**0.5 + 1e-6)).amax(1)  # fp32 rounds what never varies


def test_salf_is_unbiased_where_all_reach_a_layer_alike() -> None:
    """Depths are drawn alike from 1 to L: a layer l of L is reached by the chance l / L."""
    odds = [[(layer + 1) / LAYERS for layer in range(LAYERS)]] * DEVICES

    def depth(rng: np.random.Generator, _device: int) -> int:
        return int(rng.integers(1, LAYERS + 1))

    assert float(drawn("salf", odds, depth).max()) < 4.5
    assert float(drawn("ipw", odds, depth).max()) < 4.5
    code = drawn("code", odds, depth)
    assert float(code[:-1].min()) > 10, "it shrinks what is seldom reached"
    assert float(code[-1]) < 4.5, "all reach the last"


def test_ipw_is_unbiased_where_they_do_not() -> None:
    further = [0.5 + 0.1 * device for device in range(DEVICES)]  # each layer down with this chance
    odds = [[chance ** (LAYERS - 1 - layer) for layer in range(LAYERS)] for chance in further]

    def depth(rng: np.random.Generator, device: int) -> int:
        reached = 1
        while reached < LAYERS and rng.random() < further[device]:
            reached += 1
        return reached

    chances = [chance for own in odds for chance in own]
    assert min(chances) < LEAST, "the bound holds for the lowest of the slowest alone"
    off = drawn("ipw", odds, depth)
    assert float(off[1:].max()) < 4.5
    assert float(drawn("salf", odds, depth)[:-2].max()) > 10, "who is quick counts too much"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("devices", [1, 2, 3, 7, 30])
def test_where_all_were_sure_to_reach_everything_it_is_the_mean(devices: int, rule: str) -> None:
    """Bit for bit."""
    generator = torch.Generator().manual_seed(devices)
    before = {name(layer): torch.randn(8, generator=generator) for layer in range(LAYERS)}
    parts = []
    for device in range(devices):
        adapter = {key: torch.randn(8, generator=generator) for key in before}
        parts.append(Contribution(adapter, dict.fromkeys(adapter, 8.0), device=f"device-{device}"))
    for plan in (plan_of([[1.0] * LAYERS] * devices), RoundPlan(0)):
        ours, theirs = (aggregate(before, parts, plan) for aggregate in (mean_per_layer(rule), mean_per_block()))
        assert all(torch.equal(ours[key], theirs[key]) for key in before)


def test_the_rules_by_hand() -> None:
    """Two of four devices reached a layer, 1 and 3 in place of 10, with chances 1/2 and 1/4; the others 0 and 1/2."""
    key = name(0)
    plan = plan_of([[0.5], [0.25], [0.0], [0.5]])
    parts = [
        Contribution({key: torch.tensor([value])}, {key: 1.0}, device=f"device-{index}")
        for index, value in ((0, 1.0), (1, 3.0))
    ]
    missed = 0.5 * 0.75 * 1.0 * 0.5
    expected = {
        "code": (1 + 3 + 2 * 10) / 4,
        "salf": (2 - missed * 10) / (1 - missed),
        "ipw": 10 + ((1 - 10) / 0.5 + (3 - 10) / 0.25) / 4,
    }
    for rule, value in expected.items():
        after = mean_per_layer(rule)({key: torch.tensor([10.0])}, parts, plan)
        assert float(after[key]) == pytest.approx(value, rel=1e-6), rule


def test_no_chance_is_taken_to_be_less_than_the_least() -> None:
    key, before = name(0), {name(0): torch.zeros(1)}
    one = Contribution({key: torch.ones(1)}, {key: 1.0}, device="device-0")
    plan = plan_of([[1e-9], [1e-9]])
    assert float(mean_per_layer("salf")(before, [one], plan)[key]) == pytest.approx(1 / LEAST)
    assert float(mean_per_layer("ipw")(before, [one], plan)[key]) == pytest.approx(1 / LEAST / 2)


def test_what_nobody_reached_stays() -> None:
    before: Adapter = {name(0): torch.ones(2), "base_model.model.classifier.weight": torch.ones(2)}
    gone = Contribution({key: torch.zeros(2) for key in before}, dict.fromkeys(before, 0.0), device="device-0")
    for rule in RULES:
        after = mean_per_layer(rule)(before, [gone], plan_of([[0.5]]))
        assert all(after[key] is before[key] for key in before)


def test_the_head_has_the_last_chance() -> None:
    key = "base_model.model.classifier.weight"
    plan = RoundPlan(0, (DevicePlan("device-0").having(Reach(1.0, (0.5, 0.5, 0.25))), DevicePlan("device-1")))
    one = Contribution({key: torch.ones(1)}, {key: 1.0}, device="device-0")
    assert float(mean_per_layer("ipw")({key: torch.zeros(1)}, [one], plan)[key]) == 2.0
    assert float(mean_per_layer("salf")({key: torch.zeros(1)}, [one], plan)[key]) == 1.0, "device-1 is sure to"


def test_the_layer_of_a_tensor_is_in_its_name() -> None:
    assert layer_of("base_model.model.model.layers.17.self_attn.q_proj.lora_A.weight") == 17
    assert layer_of("base_model.model.transformer.h.0.attn.c_attn.lora_B.weight") == 0
    assert layer_of("base_model.model.score.weight") is None


def test_a_rule_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"^method\.aggregation: expected one of code, salf, ipw, got 'mean'\."):
        mean_per_layer("mean")


# ------------------------------------------------------------------ pieces


def plan(cut: int = BLOCKS, ranks: tuple[int, ...] = ()) -> DevicePlan:
    return DevicePlan("a", cut, 4, top=BLOCKS if cut == BLOCKS else None, ranks=ranks)


@pytest.mark.parametrize(
    ("device", "head", "block", "blocks"),
    [
        (plan(), 0.1, 1.0, (2, 1, 0)),
        (plan(ranks=(0, 4, 8)), 0.1, 1.0, (2, 1)),
        (plan(ranks=(0, 8, 0)), 0.0, 1.05, (2, 1)),  # two passes that end at one block tell nothing of the head
        (plan(cut=2), 0.0, 1.05, (1, 0)),
        (plan(cut=2, ranks=(0, 8, 8)), 0.0, 1.1, (1,)),
        (plan(cut=0), 0.0, 0.0, ()),
        (plan(cut=2, ranks=(0, 0, 8)), 0.0, 0.0, ()),
    ],
    ids=str,
)
def test_pieces_are_what_passes_of_two_lengths_cost(
    device: DevicePlan, head: float, block: float, blocks: tuple[int, ...]
) -> None:
    """A megaflop for each block, sample and token, and a tenth of one for the head."""
    found = pieces_of(device, FlatCosts(BLOCKS), 8, 4, 10)
    assert found.forward_flops == pytest.approx((device.cut + 0.1) * 4e7)
    assert found.head_flops == pytest.approx(head * 4e7, abs=1e-6)
    assert found.block_flops == pytest.approx(block * 4e7)
    assert found.block == pytest.approx(block / (device.cut + 0.1))
    assert found.head == pytest.approx(head / (device.cut + 0.1), abs=1e-9)
    assert found.blocks == blocks
