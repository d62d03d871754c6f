"""Slopes from forward passes are derivatives, and their means along noise are gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bases import moved_adapter, open_base
from cutlayer.model.adapter import Slot
from cutlayer.model.base import Base
from cutlayer.model.noise import normal
from cutlayer.model.optimizers import sgd, zeroth
from cutlayer.model.part import DevicePart, model_inputs
from cutlayer.model.trainable import Trainable
from cutlayer.model.zeroth import directions, lora_fa, mean_terms, perturbed, projected, two_sided
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter

ModelMaker = Callable[[str, str], Path]
KINDS = [("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "causal-lm"), ("llama", "classification")]
NO_JIT = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch.func's own
SEEDS, EPSILON = (4, 10**11, 2**63), 1e-2


Opener = Callable[[str, str], Base]


@pytest.fixture(scope="module")
def opened(tiny_model: ModelMaker) -> Opener:
    """Opens each base once."""
    return cache(lambda family, task: open_base(tiny_model(family, task), task))


@pytest.fixture(scope="module")
def bert(opened: Opener) -> Base:
    return opened("bert", "classification")


def noise_of(seed: int, name: str, like: Tensor) -> Tensor:
    return normal([seed], name, 0, like.numel()).view(like.shape)


def moved(adapter: Adapter, names: list[str], seed: int, distance: float) -> Adapter:
    return {n: v + noise_of(seed, n, v) * distance if n in names else v for n, v in adapter.items()}


def test_lora_fa_trains_every_b_and_the_head(bert: Base) -> None:
    trained = lora_fa(bert.whole().names)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in trained} == {"lora_B", "classifier", "dense"}
    assert len([n for n in bert.whole().names if ".lora_B." in n]) == len([n for n in trained if ".lora_B." in n]) > 0


def test_directions_and_places() -> None:
    adapter = {"a": torch.full((2, 3), 5.0), "b": torch.zeros(4)}
    noise = directions(adapter, ["a"], SEEDS)
    assert noise.keys() == {"a"}
    places = perturbed(adapter, noise, [(0, 0.5), (2, -0.25), (0, 0.0)])
    expected = [5 + 0.5 * noise_of(SEEDS[0], "a", adapter["a"]), 5 - 0.25 * noise_of(SEEDS[2], "a", adapter["a"])]
    assert torch.equal(places["a"], torch.stack([*expected, adapter["a"]]))


def test_places_are_made_in_fp32_and_then_cast() -> None:
    adapter = {"a": torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()}
    place = perturbed(adapter, directions(adapter, ["a"], [1]), [(0, 0.1)])["a"][0]
    assert torch.equal(place, (adapter["a"].float() + noise_of(1, "a", adapter["a"]) * 0.1).bfloat16())


@pytest.mark.parametrize(("family", "task"), KINDS)
def test_in_turn_a_query_is_mezos(family: str, task: str, opened: Opener) -> None:
    """The slope by hand, bit for bit; and the step."""
    base, batch = opened(family, task), random_batch(task)
    part, adapter = base.whole(), moved_adapter(base)
    names, losses = lora_fa(part.names), []
    for distance in (EPSILON, -EPSILON):
        part.use(moved(adapter, names, SEEDS[0], distance))
        losses.append(float(part.loss(batch)))
    slopes, mean = two_sided(part, batch, adapter, names, SEEDS[:1], EPSILON, at_once=1)
    assert slopes == [(losses[0] - losses[1]) / (2 * EPSILON)]
    assert mean == sum(losses) / 2
    trainable = Trainable({name: adapter[name] for name in names}, sgd())
    trainable.step(1e-3, zeroth(mean_terms(SEEDS[:1], slopes)))
    for name, value in trainable.adapter().items():
        assert torch.equal(value, adapter[name] - noise_of(SEEDS[0], name, value) * slopes[0] * 1e-3)


@pytest.mark.parametrize("at_once", [2, 3, 6, 100])
@pytest.mark.parametrize(("family", "task"), KINDS)
def test_together_queries_are_what_they_are_in_turn(family: str, task: str, at_once: int, opened: Opener) -> None:
    """Dual (all at once), single (one sign at once) and between: a unit of the loss's last place, over 2 epsilon."""
    base, batch = opened(family, task), random_batch(task)
    part, adapter = base.whole(), moved_adapter(base)
    names = lora_fa(part.names)
    in_turn, mean = two_sided(part, batch, adapter, names, SEEDS, EPSILON, at_once=1)
    together, mean_together = two_sided(part, batch, adapter, names, SEEDS, EPSILON, at_once=at_once)
    assert together == pytest.approx(in_turn, abs=3 * 2.4e-7 / (2 * EPSILON))
    assert mean_together == pytest.approx(mean, abs=3 * 2.4e-7)


def test_dual_with_one_query_is_mezo(opened: Opener) -> None:
    """On this model bit for bit; the authors' code forgets the slope there."""
    base, batch = opened("llama", "causal-lm"), random_batch("causal-lm")
    part, adapter = base.whole(), moved_adapter(base)
    dual, mezo = (
        two_sided(part, batch, adapter, lora_fa(part.names), [7], EPSILON, at_once=at_once) for at_once in (2, 1)
    )
    assert dual == mezo
    assert mean_terms([7], dual[0]) == [(7, dual[0][0])]


def test_queries_leave_the_adapter_as_it_was(bert: Base) -> None:
    part, adapter, batch = bert.whole(), moved_adapter(bert), random_batch("classification")
    two_sided(part, batch, adapter, lora_fa(part.names), SEEDS, EPSILON, at_once=4)
    assert all(torch.equal(value, moved_adapter(bert)[name]) for name, value in adapter.items())
    loss = part.loss(batch)
    part.use(adapter)
    assert torch.equal(part.loss(batch), loss), "and in its slots"


def alignment(terms: list[tuple[int, float]], gradient: Adapter) -> tuple[float, float]:
    """The length of the estimate along the gradient, as a part of the gradient's own, and the cosine of the two."""
    estimate = {n: sum(noise_of(seed, n, g) * factor for seed, factor in terms) for n, g in gradient.items()}
    flat, exact = (torch.cat([t.flatten() for t in x.values()]).double() for x in (estimate, gradient))
    return float(flat @ exact / (exact @ exact)), float(flat @ exact / (flat.norm() * exact.norm()))


def test_the_mean_over_queries_approaches_the_gradient(bert: Base) -> None:
    """Monte Carlo: of N queries in d dimensions, length 1 to sqrt(2 / N), cosine 1 / sqrt(1 + d / N)."""
    part, adapter, batch = bert.whole(), moved_adapter(bert), random_batch("classification")
    names = [name for name in part.names if ".lora_B." in name][:1]
    parameter = nn.Parameter(adapter[names[0]].clone())
    part.use({**adapter, names[0]: parameter})
    part.loss(batch).backward()
    assert parameter.grad is not None
    seeds = range(800)
    slopes, _ = two_sided(part, batch, adapter, names, seeds, EPSILON, at_once=250)
    length, cosine = alignment(mean_terms(seeds, slopes), {names[0]: parameter.grad})
    assert length == pytest.approx(1, abs=4 * (2 / 800) ** 0.5)
    assert cosine > 0.98 / (1 + parameter.numel() / 800) ** 0.5


# ------------------------------------------------------------------ below a cut


def device_side(base: Base) -> tuple[DevicePart, dict[str, Tensor], Adapter, Tensor, Tensor]:
    """A part below cut 2 with its inputs and adapter, its activations, and the whole model's gradient at them."""
    batch, adapter = random_batch(base.settings.task), moved_adapter(base)
    part, server = base.device_part(2), base.server_part(2)
    mine = {name: adapter[name] for name in part.names}
    part.use(mine)
    server.use(adapter)
    inputs = model_inputs(batch)
    with torch.no_grad():
        h_BTD = part.forward(inputs)
    leaf_BTD = h_BTD.clone().requires_grad_()
    server.loss(leaf_BTD, batch.attention_mask_BT.bool(), batch.labels).backward()
    assert leaf_BTD.grad is not None
    return part, inputs, mine, h_BTD, leaf_BTD.grad


def derivatives(part: DevicePart, inputs: dict[str, Tensor], adapter: Adapter, grad_BTD: Tensor) -> list[float]:
    """<grad, J u> for each seed, by forward differentiation of the part's own model."""
    paths = {}
    for path, module in part.model.named_modules():
        for slot in part.slots:
            if slot.module is module:
                paths[f"{path}.{slot.attribute}"] = slot.name
    part.use(adapter)

    def activations(values: dict[str, Tensor]) -> Tensor:
        prefix = part.model.base_model_prefix + "."
        backbone = {path.removeprefix(prefix): value for path, value in values.items()}
        hidden: Tensor = torch.func.functional_call(part._backbone, backbone, kwargs=inputs).last_hidden_state
        return hidden

    here, slopes = {path: adapter[name] for path, name in paths.items()}, []
    for seed in SEEDS:
        along = {path: noise_of(seed, paths[path], value).to(value.dtype) for path, value in here.items()}
        with sdpa_kernel(SDPBackend.MATH):
            _, tangent_BTD = torch.func.jvp(activations, (here,), (along,))
        slopes.append(float((tangent_BTD * grad_BTD).sum()))
    return slopes


@NO_JIT
@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("gpt2", "causal-lm")])
def test_as_mu_goes_to_zero_the_projected_change_is_the_derivative(
    family: str, task: str, tiny_model: ModelMaker
) -> None:
    """In fp64, so that the limit is seen: a tenth of the mu, a tenth of the error."""
    base = open_base(tiny_model(family, task), task)
    part, inputs, adapter, _, grad_BTD = device_side(base)
    part.model.double()
    adapter, grad_BTD = {name: value.double() for name, value in adapter.items()}, grad_BTD.double()
    part.use(adapter)
    with torch.no_grad():
        h_BTD = part.forward(inputs)
    assert h_BTD.dtype is torch.float64
    exact = torch.tensor(derivatives(part, inputs, adapter, grad_BTD), dtype=torch.float64)
    errors = []
    for mu in (1e-4, 1e-5, 1e-6):
        scalars = projected(part, inputs, adapter, part.names, SEEDS, mu, h_BTD, grad_BTD)
        errors.append(float((torch.tensor(scalars, dtype=torch.float64) / mu - exact).abs().max()))
    assert errors[0] < 1e-2 * exact.abs().max()
    assert all(0.08 < smaller / larger < 0.12 for larger, smaller in itertools.pairwise(errors))


@NO_JIT
@pytest.mark.parametrize(("family", "task"), KINDS)
def test_in_fp32_the_projected_change_is_the_derivative_nearly(family: str, task: str, opened: Opener) -> None:
    """At the paper's mu, 1e-3, and a tenth of it; in one pass as in several."""
    part, inputs, adapter, h_BTD, grad_BTD = device_side(opened(family, task))
    exact = derivatives(part, inputs, adapter, grad_BTD)
    largest = max(map(abs, exact))
    for mu, share in ((1e-3, 0.1), (1e-4, 0.01)):
        for at_once in (1, 2, 3):
            scalars = projected(part, inputs, adapter, part.names, SEEDS, mu, h_BTD, grad_BTD, at_once=at_once)
            assert [scalar / mu for scalar in scalars] == pytest.approx(exact, abs=share * largest)


def test_the_mean_of_projected_changes_approaches_the_gradient_of_the_split(bert: Base) -> None:
    """Monte Carlo: what back-propagation through the cut would have given the device."""
    part, inputs, adapter, h_BTD, grad_BTD = device_side(bert)
    names = [name for name in part.names if ".lora_B." in name][:1]
    parameter = nn.Parameter(adapter[names[0]].clone())
    part.use({**adapter, names[0]: parameter})
    part.forward(inputs).backward(grad_BTD)
    assert parameter.grad is not None
    mu, seeds = 1e-3, range(800)
    scalars = projected(part, inputs, adapter, names, seeds, mu, h_BTD, grad_BTD, at_once=250)
    length, cosine = alignment(mean_terms(seeds, [scalar / mu for scalar in scalars]), {names[0]: parameter.grad})
    assert length == pytest.approx(1, abs=4 * (2 / 800) ** 0.5)
    assert cosine > 0.98 / (1 + parameter.numel() / 800) ** 0.5


class Offset(nn.Module):
    """A backbone of one layer whose activations are large beside what its weight does to them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 50, bias=False)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=4096 + self.layer(x))


def test_the_difference_comes_before_the_product() -> None:
    """The difference of numbers near 4096 is exact, and a product is not: by hand in fp64."""
    generator = torch.Generator().manual_seed(0)
    backbone, inputs = Offset(), {"x": torch.randn(14, 3, generator=generator)}
    part = DevicePart(backbone, backbone, [Slot("a", backbone.layer, "weight")])
    adapter, grad_BTD = {"a": torch.zeros(50, 3)}, torch.randn(14, 50, generator=generator)
    h_BTD = torch.full((14, 50), 4096.0)
    with torch.no_grad():
        part.use(moved(adapter, ["a"], SEEDS[0], 1e-3))
        moved_BTD = part.forward(inputs)
    exact = float(((moved_BTD.double() - 4096) * grad_BTD.double()).sum())
    assert projected(part, inputs, adapter, ["a"], SEEDS[:1], 1e-3, h_BTD, grad_BTD) == pytest.approx([exact], rel=1e-6)
