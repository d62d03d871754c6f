"""One owner's training is torch's AdamW, and its moments go where its names go."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from cutlayer.model.trainable import OptimizerSettings, Trainable
from cutlayer.types import Adapter

SETTINGS = OptimizerSettings(weight_decay=0.1, beta1=0.8, beta2=0.95, epsilon=1e-6)
RATES = (1e-2, 5e-3, 2e-2)


def values(*names: str, seed: int = 0) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 2, generator=generator) for name in names}


def gradients(step: int, *names: str) -> Adapter:
    return {name: value * 3 for name, value in values(*names, seed=100 + step).items()}


def train(trainable: Trainable, steps: range) -> None:
    for step in steps:
        for name, gradient in gradients(step, *trainable.parameters).items():
            trainable.parameters[name].grad = gradient
        trainable.step(RATES[step])


def torch_adamw(start: Adapter, steps: range, *, clip: float = 0.0) -> Adapter:
    parameters = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6, fused=True)
    for step in steps:
        for name, gradient in gradients(step, *parameters).items():
            parameters[name].grad = gradient
        if clip:
            nn.utils.clip_grad_norm_(parameters.values(), clip)
        optimizer.param_groups[0]["lr"] = RATES[step]
        optimizer.step()
    return {name: parameter.detach() for name, parameter in parameters.items()}


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_is_torchs_adamw() -> None:
    trainable = Trainable(values("a", "b"), SETTINGS)
    train(trainable, range(3))
    assert_same(trainable.adapter(), torch_adamw(values("a", "b"), range(3)))


def test_clipping_is_torchs_and_over_all_tensors() -> None:
    trainable = Trainable(values("a", "b"), OptimizerSettings(0.1, 0.8, 0.95, 1e-6, clip=0.5))
    train(trainable, range(3))
    assert_same(trainable.adapter(), torch_adamw(values("a", "b"), range(3), clip=0.5))
    alone = torch_adamw(values("a"), range(3), clip=0.5)
    assert not torch.equal(trainable.adapter()["a"], alone["a"])


def test_after_a_step_there_are_no_gradients() -> None:
    trainable = Trainable(values("a"), SETTINGS)
    train(trainable, range(1))
    assert trainable.parameters["a"].grad is None


def test_a_tensor_without_gradient_stays() -> None:
    """A shared server adapter has blocks that a device with a higher cut does not pass through."""
    trainable = Trainable(values("a", "b"), SETTINGS)
    trainable.parameters["a"].grad = gradients(0, "a")["a"]
    trainable.step(0.01)
    adapter = trainable.adapter()
    assert torch.equal(adapter["b"], values("a", "b")["b"])
    assert not torch.equal(adapter["a"], values("a")["a"])
    assert_same(trainable.moments(), {n: m for n, m in trainable.moments().items() if n.startswith("a#")})


def test_nothing_to_train_is_nothing_to_do() -> None:
    trainable = Trainable({}, SETTINGS)
    trainable.step(0.1)
    assert trainable.adapter() == {}
    assert trainable.moments() == {}


def test_values_are_copied_in_and_out() -> None:
    start = values("a")
    trainable = Trainable(start, SETTINGS)
    out = trainable.adapter()
    train(trainable, range(1))
    trainable.load(again := values("a", seed=9))
    train(trainable, range(1))
    assert_same(start, values("a"))
    assert_same(out, values("a"))
    assert_same(again, values("a", seed=9))
    assert not out["a"].requires_grad


def test_loading_the_same_names_keeps_moments_and_objects() -> None:
    """The next round's broadcast: new values, AdamW as if it had never stopped."""
    trainable = Trainable(values("a", "b"), SETTINGS)
    objects = dict(trainable.parameters)
    train(trainable, range(2))
    before = {name: value.clone() for name, value in trainable.moments().items()}
    trainable.load(values("a", "b", seed=5))
    assert_same(trainable.adapter(), values("a", "b", seed=5))
    assert_same(trainable.moments(), before)
    assert all(trainable.parameters[name] is objects[name] for name in objects)


def reference_with_moments(start: Adapter, moments: Adapter, step: int) -> Adapter:
    """One AdamW step by the formula, in fp64."""
    out = {}
    for name, value in start.items():
        gradient = gradients(step, *start)[name].double()
        count = float(moments.get(f"{name}#step", torch.tensor(0.0))) + 1
        m = 0.8 * moments.get(f"{name}#exp_avg", torch.zeros(1)).double() + 0.2 * gradient
        v = 0.95 * moments.get(f"{name}#exp_avg_sq", torch.zeros(1)).double() + 0.05 * gradient**2
        decayed = value.double() * (1 - RATES[step] * 0.1)
        update = (m / (1 - 0.8**count)) / ((v / (1 - 0.95**count)).sqrt() + 1e-6)
        out[name] = (decayed - RATES[step] * update).float()
    return out


def test_names_that_stay_keep_their_moments_and_new_ones_begin_anew() -> None:
    """The cut moved: block b stays on this side, block a left it, block c came."""
    trainable = Trainable(values("a", "b"), SETTINGS)
    train(trainable, range(2))
    kept = {name: value.clone() for name, value in trainable.moments().items() if name.startswith("b#")}
    trainable.load(values("b", "c", seed=5))
    train(trainable, range(2, 3))
    expected = reference_with_moments(values("b", "c", seed=5), kept, 2)
    for name, value in trainable.adapter().items():
        torch.testing.assert_close(value, expected[name])
    moments = trainable.moments()
    assert moments["b#step"] == 3
    assert moments["c#step"] == 1
    assert not any(name.startswith("a#") for name in moments)


def test_moments_survive_a_file() -> None:
    """A checkpoint does this: save, another process loads, training goes on bit for bit."""
    one = Trainable(values("a", "b"), SETTINGS)
    train(one, range(2))
    stored = load(save(one.moments()))
    other = Trainable({}, SETTINGS)
    other.load_moments(stored)
    assert_same(other.moments(), stored)
    other.load(one.adapter())
    train(one, range(2, 3))
    train(other, range(2, 3))
    assert_same(one.adapter(), other.adapter())
    assert_same(one.moments(), other.moments())


def test_loaded_moments_are_copied() -> None:
    one = Trainable(values("a"), SETTINGS)
    train(one, range(1))
    stored = {name: value.clone() for name, value in one.moments().items()}
    before = {name: value.clone() for name, value in stored.items()}
    other = Trainable(values("a"), SETTINGS)
    other.load_moments(stored)
    train(other, range(1))
    assert_same(stored, before)


def test_no_moments_begin_anew() -> None:
    trainable = Trainable(values("a"), SETTINGS)
    train(trainable, range(2))
    trainable.load(values("a"))
    trainable.load_moments({})
    assert trainable.moments() == {}
    train(trainable, range(2))
    assert_same(trainable.adapter(), torch_adamw(values("a"), range(2)))


@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq"])
def test_moments_are_named_by_tensor_and_kind(name: str) -> None:
    trainable = Trainable(values("a"), SETTINGS)
    assert trainable.moments() == {}
    train(trainable, range(1))
    assert f"a#{name}" in trainable.moments()
    assert len(trainable.moments()) == 3


def test_moments_begin_anew_where_a_shape_changed() -> None:
    """A tensor that lost a row starts over; its neighbour goes on, also over a checkpoint."""
    after = []
    for through_a_file in (False, True):
        trainable = Trainable(values("a", "b"), SETTINGS)
        train(trainable, range(2))
        kept = trainable.adapter()
        smaller = {"a": kept["a"][:2], "b": kept["b"]}
        trainable.load(smaller)
        if through_a_file:
            moments = load(save(trainable.moments()))
            trainable = Trainable(smaller, SETTINGS)
            trainable.load_moments(moments)
        for name, gradient in gradients(2, "a", "b").items():
            trainable.parameters[name].grad = gradient[: len(trainable.parameters[name])]
        trainable.step(RATES[2])
        after.append(trainable.adapter())
    assert_same(*after)
    fresh = nn.Parameter(smaller["a"].clone())
    fresh.grad = gradients(2, "a", "b")["a"][:2]
    torch.optim.AdamW([fresh], lr=RATES[2], weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6, fused=True).step()
    assert torch.equal(after[0]["a"], fresh.detach())
    assert torch.equal(after[0]["b"], torch_adamw(values("a", "b"), range(3))["b"])


def test_what_is_left_of_a_tensor_trains_on_as_if_there_had_never_been_more() -> None:
    """AdamW works entry by entry."""
    trainable = Trainable(values("a", "b"), SETTINGS)
    train(trainable, range(2))
    trainable.shrink(lambda tensors: {n: v[:2] if n.startswith("a") else v for n, v in tensors.items()})
    for name, gradient in gradients(2, "a", "b").items():
        trainable.parameters[name].grad = gradient[: len(trainable.parameters[name])]
    trainable.step(RATES[2])
    expected = torch_adamw(values("a", "b"), range(3))
    assert torch.equal(trainable.adapter()["a"], expected["a"][:2])
    assert torch.equal(trainable.adapter()["b"], expected["b"])
    assert trainable.moments()["a#step"] == 3


def test_a_tensor_can_shrink_before_it_trained() -> None:
    trainable = Trainable(values("a"), SETTINGS)
    trainable.shrink(lambda tensors: {name: value[:1] for name, value in tensors.items()})
    assert torch.equal(trainable.adapter()["a"], values("a")["a"][:1])
    assert trainable.moments() == {}
