"""Weights are a function of the sums, whatever way led there; perturbations leave no trace; nothing large is copied."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cutlayer.errors import ConfigError, ModelError
from cutlayer.model import noise
from cutlayer.model.noise import normal
from cutlayer.model.standing import Standing
from cutlayer.types import Adapter

SEEDS = (11, 10**11, 7, 3, 2**63)
SHAPES = {"linear": (300, 250), "norm": (40,), "B": (16, 4)}


def weights() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return tensors | {"norm": 3 + tensors["norm"], "B": torch.zeros(16, 4)}


def sums(*values: float) -> Tensor:
    return torch.tensor([*values, *[0.0] * (len(SEEDS) - len(values))])


def at(sums_K: Tensor) -> Adapter:
    """The weights of somebody who went there straight."""
    standing = Standing(weights(), SEEDS)
    standing.move(sums_K)
    return standing.tensors


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_are_the_first_ones_less_sums_of_noise() -> None:
    """To half a unit of the grid for the weight, and for each seed."""
    first, sums_K = weights(), sums(1e-3, 0.0, -2e-3)
    for name, tensor in at(sums_K).items():
        z_KN = normal(SEEDS, name, 0, tensor.numel()).double()
        expected = first[name].double().flatten() - sums_K.double() @ z_KN
        unit = 2.0**-24 if name != "norm" else 8 * 2.0**-24
        assert (tensor.double().flatten() - expected).abs().max() < 3 * unit / 2 + 1e-9, name


@pytest.mark.parametrize(
    "way",
    [
        [sums(1e-3), sums(1e-3, 2e-3), sums(1e-3, 2e-3, -1e-3)],
        [sums(0.0, 0.0, -1e-3), sums(1e-3, 0.0, 5.0e-3), sums(-0.02, 0.1, 0.03, 1e-4, -0.01), sums(1e-3, 2e-3, -1e-3)],
        [sums(3e-7), sums(3e-7, -1e-6, 4e-4), sums(), sums(1e-3, 2e-3, -1e-3)],
    ],
)
def test_every_way_to_some_sums_ends_at_the_same_weights(way: list[Tensor]) -> None:
    """Devices that were there in every round, that missed some, or that went too far and came back, all end alike."""
    standing = Standing(weights(), SEEDS)
    for sums_K in way:
        standing.move(sums_K)
        assert torch.equal(standing.sums, sums_K)
    assert_same(standing.tensors, at(way[-1]))
    standing.move(sums())
    assert_same(standing.tensors, Standing(weights(), SEEDS).tensors)


def test_large_sums_that_cancel_are_exact() -> None:
    """Shares far beyond the grid's reach, in fp64 then: by hand in whole numbers, of which there is no largest."""
    z_K = normal(SEEDS, "a", 0, 1)[:, 0]
    sums_K = sums(3000.0, 1e-3, float(-3000.0 * z_K[0] / z_K[2]))
    standing = Standing({"a": torch.tensor([0.1])}, SEEDS)
    first = round(float(standing.tensors["a"]) * 2**24)
    standing.move(sums_K)
    shares = [round(float(c * z) * 2**24) for c, z in zip(sums_K, z_K, strict=True)]
    assert max(shares) > 2**34
    assert float(standing.tensors["a"]) * 2**24 == first - sum(shares)
    standing.move(sums())
    assert float(standing.tensors["a"]) * 2**24 == first


def test_weights_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = at(sums(1e-3, -2e-3, 5e-4, 1e-5, 0.1))
    monkeypatch.setattr(noise, "PIECE", 999)
    assert_same(at(sums(1e-3, -2e-3, 5e-4, 1e-5, 0.1)), expected)


def test_the_order_of_tensors_changes_nothing() -> None:
    standing = Standing(dict(reversed(weights().items())), SEEDS)
    standing.move(sums(1e-3, 2e-3))
    assert_same(dict(reversed(standing.tensors.items())), at(sums(1e-3, 2e-3)))


def test_weights_are_moved_where_they_are() -> None:
    tensors = weights()
    standing = Standing(tensors, SEEDS)
    standing.move(sums(1e-3))
    assert all(standing.tensors[name].data_ptr() == tensor.data_ptr() for name, tensor in tensors.items())
    assert_same(tensors, at(sums(1e-3)))


def test_sums_are_copied_in_and_out() -> None:
    standing, given = Standing(weights(), SEEDS), sums(1e-3)
    standing.move(given)
    given[0] = 5
    standing.sums[0] = 7
    assert torch.equal(standing.sums, sums(1e-3))


# ------------------------------------------------------------------ one step


def quadratic(standing: Standing) -> Callable[[], Tensor]:
    return lambda: sum(((tensor - 0.05) ** 2).sum() for tensor in standing.tensors.values())  # type: ignore[return-value]


def test_a_step_sees_both_sides_and_goes_where_it_is_told() -> None:
    standing, epsilon = Standing(weights(), SEEDS), 1e-3
    standing.move(sums(1e-3))
    before = {name: tensor.clone() for name, tensor in standing.tensors.items()}
    seen: list[Adapter] = []

    def loss() -> Tensor:
        seen.append({name: tensor.clone() for name, tensor in standing.tensors.items()})
        return torch.tensor(float(len(seen)))

    given = []
    assert standing.step(2, loss, epsilon, lambda *losses: given.append(losses) or 4e-3) == (1.0, 2.0)
    assert given == [(1.0, 2.0)]
    for name, tensor in before.items():
        z = normal([SEEDS[2]], name, 0, tensor.numel()).view(tensor.shape)
        unit = 2.0**-24 if name != "norm" else 8 * 2.0**-24
        assert ((seen[0][name] - tensor) - epsilon * z).abs().max() <= 0.51 * unit
        assert torch.equal(seen[0][name] - tensor, tensor - seen[1][name]), "as far to either side"
    assert torch.equal(standing.sums, sums(1e-3, 0.0, 4e-3))
    assert_same(standing.tensors, at(sums(1e-3, 0.0, 4e-3)))


def test_a_step_that_is_not_taken_leaves_no_trace() -> None:
    standing = Standing(weights(), SEEDS)
    standing.move(sums(1e-3, 7e-4))
    for index, stays in enumerate(standing.sums.tolist()):
        standing.step(index, quadratic(standing), 0.03, lambda *_, stays=stays: stays)
    assert_same(standing.tensors, at(sums(1e-3, 7e-4)))


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_loss_that_raises_leaves_no_trace(fails_at: int) -> None:
    standing, calls = Standing(weights(), SEEDS), []

    def loss() -> Tensor:
        calls.append(1)
        if len(calls) == fails_at:
            raise RuntimeError("no memory")
        return torch.tensor(0.0)

    with pytest.raises(RuntimeError, match="no memory"):
        standing.step(1, loss, 1e-3, lambda *_: 1.0)
    assert_same(standing.tensors, at(sums()))
    assert torch.equal(standing.sums, sums())


def test_steps_descend() -> None:
    """MeZO on a quadratic, a few seeds over and over."""
    standing = Standing({"a": torch.full((4,), 0.5)}, range(40))
    loss = quadratic(standing)
    start = float(loss())
    for step in range(400):
        index = step % 40

        def decide(plus: float, minus: float, index: int = index) -> float:
            return float(standing.sums[index] + torch.tensor(0.05 * (plus - minus) / 2e-2))

        standing.step(index, loss, 1e-2, decide)
    assert float(loss()) < 0.05 * start


@pytest.mark.parametrize("epsilon", [0.0, -1e-3, 0.031, math.nan])
def test_an_epsilon_out_of_range_is_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError, match=r"method\.epsilon: expected above 0"):
        Standing(weights(), SEEDS).step(0, lambda: torch.zeros(()), epsilon, lambda *_: 0.0)


# ------------------------------------------------------------------ what it costs


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that anything computes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name()
        if isinstance(result, Tensor) and "view" not in name and "detach" not in name and not name.endswith("_"):
            self.bytes = max(self.bytes, result.untyped_storage().nbytes() if result._base is None else 0)
        return result


def test_a_step_holds_no_copy_of_the_weights() -> None:
    """Sixteen pieces of weights; nothing larger than a piece in fp64 is made, for all seeds at once neither."""
    standing = Standing({"a": torch.zeros(16, noise.PIECE)}, SEEDS)
    with Largest() as largest:
        standing.step(0, lambda: torch.zeros(()), 1e-3, lambda *_: 1e-3)
        standing.move(sums(1e-3, 1e-3, 1e-3, 1e-3, 1e-3))
    assert 0 < largest.bytes <= 8 * noise.PIECE


def passes(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    """How many seeds' noise for `norm` was made in there."""
    made: list[int] = []
    original = noise.bits

    def counting(seed: int, name: str, *rest: Any) -> Tensor:
        made.extend([seed] if name == "norm" else [])
        return original(seed, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(noise, "bits", counting)
        work()
    return len(made)


def test_a_move_makes_the_noise_of_what_differs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    standing = Standing(weights(), SEEDS)
    assert passes(monkeypatch, lambda: standing.move(sums(1e-3, 2e-3, 3e-3))) == 3
    assert passes(monkeypatch, lambda: standing.move(sums(1e-3, 5e-3, 3e-3))) == 1
    assert passes(monkeypatch, lambda: standing.move(standing.sums)) == 0
    assert passes(monkeypatch, lambda: standing.step(1, lambda: torch.zeros(()), 1e-3, lambda *_: 0.0)) == 3


def test_the_way_from_a_copy_is_taken_where_it_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that plays many devices: each goes from its own steps to the round's sums, and sets out from there."""
    standing = Standing(weights(), SEEDS)
    standing.move(sums(1e-3))
    standing.keep()
    standing.move(sums(2e-3, 1e-3, 1e-3))
    assert passes(monkeypatch, lambda: standing.move(sums(1e-3))) == 0, "back there"
    assert_same(standing.tensors, at(sums(1e-3)))
    standing.move(sums(2e-3, 1e-3, 1e-3))
    assert passes(monkeypatch, lambda: standing.move(sums(1e-3, 0.0, 0.0, 4e-3))) == 1, "by way of there"
    assert_same(standing.tensors, at(sums(1e-3, 0.0, 0.0, 4e-3)))
    standing.move(sums(2e-3, 1e-3, 1e-3))
    assert passes(monkeypatch, lambda: standing.move(sums(2e-3, 1e-3, 0.0))) == 1, "straight"
    assert_same(standing.tensors, at(sums(2e-3, 1e-3)))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("tensor", [torch.zeros(4, dtype=torch.bfloat16), torch.zeros(2, 3).T])
def test_weights_that_have_no_grid_are_refused(tensor: Tensor) -> None:
    with pytest.raises(ModelError, match="a: expected contiguous fp32 weights"):
        Standing({"a": tensor}, SEEDS)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(4), torch.tensor([0, 0, math.nan, 0, 0]), torch.tensor([math.inf, 0, 0, 0, 0])]
)
def test_sums_that_are_none_are_refused_before_anything_moves(wrong: Tensor) -> None:
    standing = Standing(weights(), SEEDS)
    with pytest.raises(ModelError, match="sums of seeds: expected 5 finite numbers"):
        standing.move(wrong)
    assert_same(standing.tensors, at(sums()))


def test_weights_that_leave_their_grid_are_said() -> None:
    """A run that diverges: beyond the grid, ways would no longer end at the same weights."""
    with pytest.raises(ModelError, match="Training diverges: lower the learning rate"):
        Standing(weights(), SEEDS).move(sums(1.0))
    with pytest.raises(ModelError, match="Training diverges"):
        Standing(weights(), SEEDS).step(0, lambda: torch.zeros(()), 1e-3, lambda *_: 1.0)


def test_weights_that_hold_nothing_have_nothing_to_move() -> None:
    """A rehearsal runs on the meta device."""
    standing = Standing({"a": torch.zeros(5, device="meta")}, SEEDS)
    standing.move(sums(1e-3))
    assert torch.equal(standing.sums, sums(1e-3))
