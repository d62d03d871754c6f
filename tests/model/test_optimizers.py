"""Rules are torch's optimizers where torch has them, and what their formulas say elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from cutlayer.errors import ConfigError
from cutlayer.model.noise import normal
from cutlayer.model.optimizers import OptimizerSettings, Rule, adamw, quantised, sgd, zeroth
from cutlayer.model.trainable import Trainable
from cutlayer.types import Adapter

RATES = (1e-2, 5e-3, 2e-2)
SHAPES = {"a": (3, 2), "b": (5,)}


def values(seed: int = 0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def train(trainable: Trainable, steps: range = range(3)) -> Adapter:
    for step in steps:
        for name, gradient in values(100 + step).items():
            trainable.parameters[name].grad = gradient
        trainable.step(RATES[step])
    return trainable.adapter()


def torch_sgd(**options: float) -> Adapter:
    parameters = {name: nn.Parameter(value) for name, value in values().items()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.0, **options)
    for step, rate in enumerate(RATES):
        for name, gradient in values(100 + step).items():
            parameters[name].grad = gradient
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_settings_are_those_of_adamw() -> None:
    settings = OptimizerSettings(0.1, 0.8, 0.95, 1e-6, clip=0.5)
    by_rule, by_settings = Trainable(values(), adamw(settings)), Trainable(values(), settings)
    assert_same(train(by_rule), train(by_settings))
    assert_same(by_rule.moments(), by_settings.moments())


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"weight_decay": 0.2}, {"momentum": 0.5, "weight_decay": 0.1}]
)
def test_sgd_is_torchs(options: dict[str, float]) -> None:
    assert_same(train(Trainable(values(), sgd(**options))), torch_sgd(**options))


def test_sgd_remembers_momentum_alone() -> None:
    plain, heavy = Trainable(values(), sgd()), Trainable(values(), sgd(momentum=0.9))
    train(plain)
    train(heavy)
    assert plain.moments() == {}
    assert heavy.moments().keys() == {"a#momentum_buffer", "b#momentum_buffer"}


@pytest.mark.parametrize("rule", [sgd(momentum=0.9), quantised(sgd(momentum=0.9), bits=4, seed=1)])
def test_what_a_rule_remembers_survives_a_file(rule: Rule) -> None:
    straight, first, second = (Trainable(values(), rule) for _ in range(3))
    train(straight)
    train(first, range(2))
    second.load(first.adapter())
    second.load_moments(load(save(first.moments())))
    assert_same(train(second, range(2, 3)), straight.adapter())
    assert_same(second.moments(), straight.moments())


def test_one_rule_serves_many_owners() -> None:
    rule = sgd(momentum=0.9)
    one, other = Trainable(values(), rule), Trainable(values(), rule)
    train(other)
    assert_same(train(one), other.adapter())


def test_momentum_shrinks_with_its_tensor() -> None:
    trainable = Trainable(values(), sgd(momentum=0.9))
    train(trainable, range(2))
    trainable.shrink(lambda tensors: {name: value[:2] for name, value in tensors.items()})
    for name, gradient in values(102).items():
        trainable.parameters[name].grad = gradient[:2]
    trainable.step(RATES[2])
    expected = torch_sgd(momentum=0.9)
    assert_same(trainable.adapter(), {name: value[:2] for name, value in expected.items()})


# ------------------------------------------------------------------ zeroth order

TERMS = [(5, 0.25), (2**63, -1.5), (5, 3.0)]


def noise_of(seed: int, name: str, like: Tensor) -> Tensor:
    return normal([seed], name, 0, like.numel()).view(like.shape)


def by_hand(weight_decay: float) -> Adapter:
    """w - rate (sum of factor x noise + decay w), each operation rounded to fp32."""
    after = {}
    for name, value in values().items():
        direction = torch.zeros_like(value)
        for seed, factor in TERMS:
            direction = direction + noise_of(seed, name, value) * factor
        after[name] = value - (direction + value * weight_decay) * 0.1
    return after


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_a_zeroth_order_step_is_against_the_sum_of_its_terms(weight_decay: float) -> None:
    trainable = Trainable(values(), sgd())
    trainable.step(0.1, zeroth(TERMS, weight_decay=weight_decay))
    assert_same(trainable.adapter(), by_hand(weight_decay))
    assert trainable.moments() == {}


def test_a_zeroth_order_step_is_gradient_descent_on_the_estimate() -> None:
    """Up to the last bit: torch may contract the product with the rate."""
    by_terms, by_gradient = Trainable(values(), sgd()), Trainable(values(), sgd(weight_decay=0.3))
    for name, parameter in by_gradient.parameters.items():
        parameter.grad = sum(noise_of(seed, name, parameter) * factor for seed, factor in TERMS)
    by_gradient.step(0.1)
    by_terms.step(0.1, zeroth(TERMS, weight_decay=0.3))
    for name, value in by_gradient.adapter().items():
        torch.testing.assert_close(by_terms.adapter()[name], value, atol=1e-6, rtol=0)


def test_only_the_tensors_named_move() -> None:
    """LoRA-FA: every A stays as it was drawn."""
    trainable, alone = Trainable(values(), sgd()), Trainable({"b": values()["b"]}, sgd())
    trainable.step(0.1, zeroth(TERMS, names=["b"]))
    alone.step(0.1, zeroth(TERMS))
    assert_same(trainable.adapter(), {"a": values()["a"], **alone.adapter()})


def test_a_history_of_steps_can_be_done_again() -> None:
    """HO-SFL: a device that was away replays seeds and scalars, from its own copy of where it left."""
    here, there = Trainable(values(), sgd()), Trainable(dict(reversed(values().items())), sgd())
    history = [[(10 * step + p, 0.3 * p - step) for p in range(2)] for step in range(5)]
    for terms in history:
        here.step(1e-2, zeroth(terms))
    for terms in history:
        there.step(1e-2, zeroth(terms))
    assert_same(dict(sorted(there.adapter().items())), here.adapter())


def test_a_zeroth_order_step_drops_gradients() -> None:
    """One step is made of one thing."""
    trainable = Trainable(values(), sgd())
    trainable.parameters["a"].grad = torch.ones(3, 2)
    trainable.step(0.1, zeroth([]))
    assert_same(trainable.adapter(), values())
    assert trainable.parameters["a"].grad is None


def test_a_tensor_in_bf16_moves_by_noise_of_fp32() -> None:
    start = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    trainable = Trainable({"a": start}, sgd())
    trainable.step(0.5, zeroth([(1, 2.0)]))
    expected = start.float() - (normal([1], "a", 0, 1000)[0] * 2.0) * 0.5
    assert torch.equal(trainable.adapter()["a"], expected.bfloat16())


# ------------------------------------------------------------------ quantised gradients


def quantisations(gradient: Tensor, times: int, *, bits: int, seed: int = 0) -> Tensor:
    """Gradients that the other rule was given, at so many steps with this gradient."""
    given = []

    def watching(parameters: Mapping[str, nn.Parameter], _moments: Adapter, _rate: float) -> None:
        given.append(parameters["a"].grad.clone())

    trainable = Trainable({"a": torch.zeros_like(gradient)}, quantised(watching, bits=bits, seed=seed))
    for _ in range(times):
        trainable.parameters["a"].grad = gradient.clone()
        trainable.step(0.1)
    return torch.stack(given)


GRADIENT = torch.randn(40, 5, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantised_gradients_are_the_level_below_or_above(bits: int) -> None:
    step = GRADIENT.abs().max() / (2 ** (bits - 1) - 1)
    rounded = quantisations(GRADIENT, 20, bits=bits)
    levels = rounded / step
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert len(levels.round().unique()) <= 2**bits - 1
    assert ((rounded - GRADIENT).abs() < step * 1.001).all()
    assert (rounded != rounded[0]).any(), "drawn anew at each step"


def test_quantised_gradients_are_unbiased() -> None:
    times, step = 1500, GRADIENT.abs().max() / 3
    mean = quantisations(GRADIENT, times, bits=3).mean(0)
    assert (mean - GRADIENT).abs().max() < 4.5 * step / 2 / times**0.5


def test_what_is_a_level_stays() -> None:
    """Zero, the largest, and all there is at very many bits."""
    gradient = torch.tensor([0.0, -3.0, 3.0, 1.0, -2.0])
    assert (quantisations(gradient, 200, bits=3) == gradient).all(), "levels are multiples of 1"
    assert (quantisations(torch.zeros(4), 3, bits=2) == 0).all()


def test_draws_go_by_seed_and_step() -> None:
    one, again, other = (quantisations(GRADIENT, 3, bits=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_other_rule_steps_on_what_is_left() -> None:
    gradient = torch.tensor([0.0, -3.0, 3.0, 1.0])  # levels, so nothing is drawn
    by_rule, plain = (
        Trainable({"a": torch.ones(4)}, quantised(sgd(), bits=3, seed=0)),
        Trainable({"a": torch.ones(4)}, sgd()),
    )
    for trainable in (by_rule, plain):
        trainable.parameters["a"].grad = gradient.clone()
        trainable.step(0.1)
    assert_same(by_rule.adapter(), plain.adapter())


@pytest.mark.parametrize("bits", [1, 0, 17])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match="expected 2 to 16"):
        quantised(sgd(), bits=bits, seed=0)
