"""Costs foretold without computing anything, beside those of real steps on real tensors, and beside formulas."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bases import moved_adapter, open_base, settings_for
from cutlayer.device.shape import shape_by_name
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.cost import (
    BYTES_PER_TRAINABLE,
    HEAP_SLACK,
    TRANSIENTS,
    CostModel,
    ShapedCosts,
    cost_model,
)
from cutlayer.model.counting import PROBE_SAMPLES, Counter, Held
from cutlayer.model.imagined import FUSED_ATTENTION
from cutlayer.model.part import Part, model_inputs
from cutlayer.model.settings import ModelSettings
from cutlayer.policies.delay import Delay
from cutlayer.policies.prune import Prune
from cutlayer.testing import tiny
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Batch, Cost, DevicePlan, Flow, Kept
from turns import CASES, by_turns

ModelMaker = Callable[[str, str], Path]
THREE = [("gpt2", "causal-lm"), ("bert", "classification"), ("llama", "classification")]
SAMPLES, TOKENS = 3, 23
D, FF, HEADS, RANK = 16, 32, 4, 8  # of the tiny encoders, and LoRA's rank


def at(cut: int) -> DevicePlan:
    return DevicePlan("somebody", cut)


def shaped(settings: ModelSettings, shape: str = "split") -> ShapedCosts:
    """The costs of steps in rounds of this shape."""
    return cost_model(settings).of(shape_by_name(shape).flow)


@pytest.fixture
def costs(tiny_model: ModelMaker) -> Callable[[str, str], ShapedCosts]:
    """The costs of a tiny model, counted once for all tests."""
    return lambda family, task: shaped(settings_for(tiny_model(family, task), task))


# ------------------------------------------------------------------ beside a real step


def all_learned(task: str) -> Batch:
    """A batch whose every token is learned, which is what the cost model counts: it sees no labels."""
    batch = random_batch(task, samples=SAMPLES, tokens=TOKENS)
    return replace(batch, labels=batch.input_ids_BT) if task == "causal-lm" else batch


@dataclass
class Measured:
    """The measured cost of one pass of a part."""

    output: Tensor
    flops: float
    kept_bytes: int
    largest_bytes: int


def measured(part: Part, forward: Callable[[], Tensor]) -> Measured:
    weights = {parameter.untyped_storage().data_ptr() for parameter in part.model.parameters()}
    alive: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            alive[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with counter() as flops, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    sizes = {storage: tensor.untyped_storage().nbytes() for storage, tensor in alive.items()}
    reused = {tensor.untyped_storage().data_ptr() for tensor in getattr(output.grad_fn, "saved_tensors", ())}
    others = [size for storage, size in sizes.items() if storage not in reused]
    largest = max([*others, output.numel() * output.element_size()])
    return Measured(output, flops.get_total_flops(), sum(sizes.values()), largest)


def counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION)


def backward_flops(output: Tensor, gradient: Tensor | None) -> float:
    with counter() as flops:
        output.backward(gradient)
    return float(flops.get_total_flops())


def fixed_bytes(part: Part, adapter: Mapping[str, Tensor]) -> int:
    once = {p.data_ptr(): p for p in part.model.parameters() if not p.requires_grad}  # a tied head is there once
    frozen = sum(p.numel() * p.element_size() for p in once.values())
    return frozen + BYTES_PER_TRAINABLE * sum(adapter[name].numel() for name in part.names)


@pytest.mark.parametrize("cut", [0, 1, BLOCKS])
@pytest.mark.parametrize(("family", "task"), THREE)
def test_a_step_costs_what_was_foretold(
    family: str, task: str, cut: int, costs: Callable[[str, str], ShapedCosts], tiny_model: ModelMaker
) -> None:
    """FLOPs exactly; memory but for what does not grow with the batch (rotary tables, a scalar)."""
    base, batch = open_base(tiny_model(family, task), task), all_learned(task)
    adapter = {name: nn.Parameter(value) for name, value in moved_adapter(base).items()}
    device, server = base.device_part(cut), base.server_part(cut)
    device.use(adapter)
    server.use(adapter)
    ahead = measured(device, lambda: device.forward(model_inputs(batch)))
    fed_BTD = ahead.output.detach().requires_grad_(cut > 0)
    loss = measured(server, lambda: server.loss(fed_BTD, batch.attention_mask_BT.bool(), batch.labels))
    server_back = backward_flops(loss.output, None)
    device_back = backward_flops(ahead.output, fed_BTD.grad) if cut > 0 else 0.0

    foretold = [side(at(cut), SAMPLES, TOKENS) for side in (costs(family, task).device, costs(family, task).server)]
    real = ((device, ahead, device_back), (server, loss, server_back))
    for cost, (part, forward, back) in zip(foretold, real, strict=True):
        assert (cost.forward_flops, cost.backward_flops) == (forward.flops, back)
        memory = fixed_bytes(part, adapter) + HEAP_SLACK * (forward.kept_bytes + TRANSIENTS * forward.largest_bytes)
        assert cost.memory_bytes == pytest.approx(memory, rel=0.03)
        if part is device:
            foretold_largest = costs(family, task).largest_bytes(at(cut), SAMPLES, TOKENS)
            assert foretold_largest == pytest.approx(forward.largest_bytes, rel=0.2)  # a maximum, and fitted
        assert forward.kept_bytes == 0 or forward.kept_bytes > 0.03 * memory, "or the line above would prove nothing"


def test_what_is_foretold_is_never_too_little(costs: Callable[[str, str], ShapedCosts], tiny_model: ModelMaker) -> None:
    """A prompt and padding are not learned, and cost the head nothing."""
    base, batch = open_base(tiny_model("llama", "causal-lm"), "causal-lm"), random_batch("causal-lm", samples=SAMPLES)
    server, few = base.server_part(BLOCKS), batch.weight
    h_BTD = torch.zeros(SAMPLES, 12, base.config.hidden_size).requires_grad_()
    ahead = measured(server, lambda: server.loss(h_BTD, batch.attention_mask_BT.bool(), batch.labels))
    cost = costs("llama", "causal-lm").server(at(BLOCKS), SAMPLES, 12)
    assert cost.forward_flops == pytest.approx(ahead.flops * SAMPLES * 11 / few)
    assert few < SAMPLES * 11
    held = fixed_bytes(server, {}) + HEAP_SLACK * (ahead.kept_bytes + TRANSIENTS * ahead.largest_bytes)
    assert cost.memory_bytes > held


@pytest.mark.parametrize("ranks", [(), (0, 2, 6), (1, 3, 12), (0, 0, 8)])
@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "causal-lm")])
def test_a_whole_model_costs_what_its_ranks_say(
    family: str, task: str, ranks: tuple[int, ...], tiny_model: ModelMaker
) -> None:
    """A device that trains alone: backward ends at the lowest adapted block, LoRA costs by its rank."""
    folder = tiny_model(family, task)
    base, batch = open_base(folder, task), all_learned(task)
    plan = DevicePlan("somebody", BLOCKS, top=BLOCKS, ranks=ranks)
    adapter = {name: nn.Parameter(value) for name, value in base.initial_adapter(0, ranks).items()}
    whole = base.whole(plan.blocks)
    whole.use(adapter)
    ahead = measured(whole, lambda: whole.loss(batch))
    cost = shaped(settings_for(folder, task), "local").device(plan, SAMPLES, TOKENS)
    assert (cost.forward_flops, cost.backward_flops) == (ahead.flops, backward_flops(ahead.output, None))
    memory = fixed_bytes(whole, adapter) + HEAP_SLACK * (ahead.kept_bytes + TRANSIENTS * ahead.largest_bytes)
    assert cost.memory_bytes == pytest.approx(memory, rel=0.03)


@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("top", [2, BLOCKS])
@pytest.mark.parametrize(("family", "task"), [*THREE, ("llama", "causal-lm")])
def test_a_device_with_both_ends_costs_what_its_parts_cost(
    family: str, task: str, top: int, delay: int, tiny_model: ModelMaker
) -> None:
    """FLOPs exactly; of weights that both ends share (a tied head) one copy; graphs of all steps under way."""
    folder = tiny_model(family, task)
    base, batch = open_base(folder, task), all_learned(task)
    plan = DevicePlan("somebody", 1, top=top)
    adapter = {name: nn.Parameter(value) for name, value in moved_adapter(base).items()}
    parts: tuple[Any, Any, Any] = base.device_part(1), base.middle_part(1, top), base.tail_part(top)
    for part in parts:
        part.use(adapter)
    below, middle, above = parts
    mask_BT = batch.attention_mask_BT.bool()
    first = measured(below, lambda: below.forward(model_inputs(batch)))
    h_BTD = first.output.detach().requires_grad_()
    second = measured(middle, lambda: middle.forward(h_BTD, mask_BT))
    leaf_BTD = second.output.detach().requires_grad_()
    third = measured(above, lambda: above.loss(leaf_BTD, mask_BT, batch.labels))
    back = [backward_flops(third.output, None)]
    back.append(backward_flops(second.output, leaf_BTD.grad))
    back.append(backward_flops(first.output, h_BTD.grad))

    asked = shaped(settings_for(folder, task), "u-shape")
    late = plan.having(Delay(delay)) if delay else plan
    device, server = asked.device(late, SAMPLES, TOKENS), asked.server(late, SAMPLES, TOKENS)
    assert (server.forward_flops, server.backward_flops) == (second.flops, back[1])
    assert (device.forward_flops, device.backward_flops) == (first.flops + third.flops, back[2] + back[0])
    shared = {p.data_ptr(): p.numel() * p.element_size() for p in below.model.parameters() if not p.requires_grad}
    shared_bytes = sum(shared.get(p.data_ptr(), 0) for p in above.model.parameters())
    assert (shared_bytes > 0) == (family == "gpt2"), "its head is its embeddings"
    values = 4 * sum(adapter[name].numel() for part in (below, above) for name in part.names)
    fixed = fixed_bytes(below, adapter) + fixed_bytes(above, adapter) - shared_bytes + delay * values
    kept = (1 + delay) * first.kept_bytes + third.kept_bytes
    memory = fixed + HEAP_SLACK * (kept + TRANSIENTS * max(first.largest_bytes, third.largest_bytes))
    assert device.memory_bytes == pytest.approx(memory, rel=0.03)
    assert asked.device(late, 0, TOKENS).memory_bytes == fixed
    names = base.device_names(1, top=top)
    assert asked.device_adapter_bytes(plan) == 4 * sum(adapter[name].numel() for name in names)
    assert asked.adapters_on_device(plan) == sum(".lora_A." in name for name in names)


# ------------------------------------------------------------------ beside formulas


def test_flops_of_a_block_by_hand(costs: Callable[[str, str], ShapedCosts]) -> None:
    """Two per multiplication and addition: four projections, two of the feed-forward, scores and values, LoRA."""
    projections = 2 * (4 * D * D + 2 * D * FF)
    lora = 4 * 2 * (D * RANK + RANK * D)
    attention = 2 * 2 * TOKENS * D
    per_token = projections + lora + attention
    assert costs("bert", "classification").device(at(1), SAMPLES, TOKENS).forward_flops == SAMPLES * TOKENS * per_token


def test_flops_of_a_head_by_hand(costs: Callable[[str, str], ShapedCosts]) -> None:
    """Pooler and classifier on one vector per sample; backward as much again for the weights and for the vector."""
    cost = costs("bert", "classification").server(at(BLOCKS), SAMPLES, TOKENS)
    head = SAMPLES * 2 * (D * D + D * 3)
    assert cost.forward_flops == head
    assert cost.backward_flops == 2 * head


def test_bytes_by_hand(costs: Callable[[str, str], ShapedCosts], tiny_model: ModelMaker) -> None:
    model = costs("bert", "classification")
    assert model.num_blocks == BLOCKS
    assert model.hidden_size == D
    assert model.activation_bytes(SAMPLES, TOKENS) == SAMPLES * TOKENS * D * 4
    assert model.adapters_on_device(at(2)) == 2 * 4
    assert model.device_adapter_bytes(at(2)) == 2 * 4 * (RANK * D + D * RANK) * 4
    assert model.model.adapter_bytes(["base_model.model.classifier.weight"]) == 3 * D * 4
    half = shaped(settings_for(tiny_model("bert", "classification"), "classification", dtype="bf16"))
    assert half.activation_bytes(SAMPLES, TOKENS) == SAMPLES * TOKENS * D * 2
    assert half.device_adapter_bytes(at(2)) == model.device_adapter_bytes(at(2)), "what is trained stays fp32"


# ------------------------------------------------------------------ how costs hang together


@pytest.mark.parametrize(("family", "task"), THREE[:2])
def test_wherever_the_cut_the_blocks_add_up(family: str, task: str, costs: Callable[[str, str], ShapedCosts]) -> None:
    model = costs(family, task)
    pairs = [(model.device(at(cut), 2, 50), model.server(at(cut), 2, 50)) for cut in range(BLOCKS + 1)]
    sums = {device.forward_flops + server.forward_flops for device, server in pairs}
    assert len(sums) == 1
    devices, servers = [list(side) for side in zip(*pairs, strict=True)]

    def grows(side: list[Cost], attribute: str) -> bool:
        values = [getattr(cost, attribute) for cost in side]
        return all(one < other for one, other in pairwise(values))

    for attribute in ("forward_flops", "backward_flops", "memory_bytes"):
        assert grows(devices, attribute)
        assert grows(servers[::-1], attribute)
    assert devices[0].forward_flops == 0
    assert devices[0].backward_flops == 0, "nothing on a device without blocks trains"


def test_flops_grow_with_samples_and_attention_with_the_square_of_tokens(
    costs: Callable[[str, str], ShapedCosts],
) -> None:
    model = costs("bert", "classification")

    def flops(samples: int, tokens: int) -> float:
        return model.device(at(1), samples, tokens).forward_flops

    assert flops(6, 40) == 3 * flops(2, 40)
    assert flops(1, 80) - 2 * flops(1, 40) == 2 * 2 * D * (80**2 - 2 * 40**2)


def test_memory_grows_with_the_batch_above_what_is_fixed(costs: Callable[[str, str], ShapedCosts]) -> None:
    model = costs("bert", "classification")
    one, two, four = (model.device(at(1), samples, 40).memory_bytes for samples in (1, 2, 4))
    assert four - two == 2 * (two - one) > 0


def test_recomputing_costs_flops_and_saves_memory(
    costs: Callable[[str, str], ShapedCosts], tiny_model: ModelMaker
) -> None:
    """The backward pass runs the blocks forward once more; one block's activations are there at a time."""
    plain = costs("bert", "classification")
    folder = tiny_model("bert", "classification")
    thrifty = shaped(settings_for(folder, "classification", checkpoint_device=True, checkpoint_server=True))
    for cut, sides in ((BLOCKS, ("device",)), (0, ("server",))):
        for side in sides:
            before, after = (getattr(model, side)(at(cut), 4, 40) for model in (plain, thrifty))
            blocks = plain.device(at(BLOCKS), 4, 40).forward_flops
            assert after.forward_flops == before.forward_flops
            assert after.backward_flops == before.backward_flops + blocks
            assert after.memory_bytes < 0.8 * before.memory_bytes
    one_block = plain.device(at(1), 4, 40).memory_bytes - plain.device(at(0), 4, 40).memory_bytes
    nothing = plain.device(at(0), 4, 40).memory_bytes
    assert thrifty.device(at(BLOCKS), 4, 40).memory_bytes > nothing + one_block
    assert thrifty.largest_bytes(at(BLOCKS), 4, 40) == plain.largest_bytes(at(BLOCKS), 4, 40) > 0


def test_no_weight_is_read(tiny_model: ModelMaker, tmp_path: Path) -> None:
    """A folder with nothing but config.json is enough."""
    shutil.copy(tiny_model("bert", "classification") / "config.json", tmp_path)
    model = CostModel(settings_for(tmp_path, "classification"))
    assert model.of(shape_by_name("split").flow).device(at(1), 1, 8).forward_flops > 0
    assert model._base.weights.bytes_read == 0


def test_the_same_settings_are_counted_once(tiny_model: ModelMaker) -> None:
    settings = settings_for(tiny_model("bert", "classification"), "classification")
    assert cost_model(settings) is cost_model(settings_for(tiny_model("bert", "classification"), "classification"))


# ------------------------------------------------------------------ pruned


PRUNED = [
    (*case, ranks, prune)
    for case in (*THREE, ("phi3", "causal-lm"))
    for ranks in ((), (2, 2, 2))
    for prune in (0.3, 0.5, 0.95)
]


@pytest.mark.parametrize(("family", "task", "ranks", "prune"), list(by_turns(PRUNED, one_of=5)))
def test_a_pruned_model_costs_what_it_really_does(
    family: str, task: str, ranks: tuple[int, ...], prune: float, tiny_model: ModelMaker
) -> None:
    """From three structures that are counted, at any: FLOPs and what is held exactly, the transient part from above."""
    settings = settings_for(tiny_model(family, task), task, lora=LoraSettings(targets=("all-linear",)))
    base, batch = Base(settings), all_learned(task)
    unpruned = DevicePlan("somebody", BLOCKS, top=BLOCKS, ranks=ranks)
    plan, costs = unpruned.having(Prune(prune)), shaped(settings, "pruned")
    heads, channels = (tuple(range(1, 1 + left)) for left in base.structure.left(prune))
    kept = Kept((tuple(head % base.structure.counts["heads"] for head in heads),) * BLOCKS, (channels,) * BLOCKS)
    adapter = base.structure.slice_all(base.initial_adapter(0, ranks), kept)
    part = base.pruned(kept)
    parameters = {name: nn.Parameter(value) for name, value in adapter.items()}
    part.use(parameters)
    ahead = measured(part, lambda: part.loss(batch))
    cost, whole = (costs.device(p, SAMPLES, TOKENS) for p in (plan, unpruned))
    assert (cost.forward_flops, cost.backward_flops) == (ahead.flops, backward_flops(ahead.output, None))
    memory = fixed_bytes(part, adapter) + HEAP_SLACK * (ahead.kept_bytes + TRANSIENTS * ahead.largest_bytes)
    assert 0.97 * memory <= cost.memory_bytes <= 1.1 * memory
    assert cost.forward_flops < whole.forward_flops
    assert cost.memory_bytes < whole.memory_bytes
    sent = 4 * sum(value.numel() for value in adapter.values())
    assert costs.device_adapter_bytes(plan) == sent


# ------------------------------------------------------------------ ranks by module


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task"), [("bert", "classification"), ("gpt2", "causal-lm"), ("llama", "causal-lm")]
)
def test_ranks_by_module_cost_what_counting_says(family: str, task: str, tiny_model: ModelMaker) -> None:
    """Linear in each rank: forward FLOPs and memory as if counted, backward FLOPs but for the lowest block's inputs."""
    settings = settings_for(tiny_model(family, task), task, lora=LoraSettings(targets=("all-linear",)))
    model, whole = CostModel(settings), Counter(settings)
    rng = random.Random(0)
    number = len(open_base(Path(settings.name), task, lora=settings.lora).modules)
    for _ in range(3):
        ranks = tuple(rng.choice((1, 2, 4, 8, 16)) for _ in range(number))
        for held in (
            Held("device", 1, ranks),
            Held("device", 3, ranks),
            Held("server", 1, ranks),
            Held("whole", 3, ranks),
        ):
            linear, counted = model._coefficients(held), whole.counted(held)
            assert linear[[0, 2]] == pytest.approx(counted[[0, 2]], rel=1e-9, abs=1e-3)
            assert linear[1] == pytest.approx(counted[1], rel=0.15, abs=1e-3)  # ranks are as wide as the model
            assert (linear[1] >= counted[1] - 1e-3).all(), "never less than it takes"
            assert linear[3] == pytest.approx(counted[3])


def test_equal_ranks_cost_the_same_by_module_and_by_block(tiny_model: ModelMaker) -> None:
    settings = settings_for(tiny_model("llama", "causal-lm"), "causal-lm", lora=LoraSettings(targets=("all-linear",)))
    costs, modules = shaped(settings), len(Base(settings, device="meta").modules)
    for rank in (1, 8):
        by_block, by_module = (DevicePlan("pi", 2, ranks=(rank,) * number) for number in (BLOCKS, modules))
        one, other = costs.device(by_block, 4, 10), costs.device(by_module, 4, 10)
        assert (one.forward_flops, one.memory_bytes) == (other.forward_flops, other.memory_bytes)
        assert costs.device_adapter_bytes(by_block) == costs.device_adapter_bytes(by_module)
        assert costs.server_trainable_bytes(by_block) == costs.server_trainable_bytes(by_module)


# ------------------------------------------------------------------ from pieces

OFTEN = (("gpt2", "causal-lm"), ("bert", "classification"))


def every_family() -> list[Any]:
    return [pytest.param(*case, marks=() if case in OFTEN else pytest.mark.slow) for case in CASES]


def every_part(ranks: tuple[int, ...]) -> list[Held]:
    """Both sides of every cut, what lies between two, and the whole."""
    cuts = range(BLOCKS + 1)
    held = [Held(kind, cut, ranks) for kind in ("device", "server") for cut in cuts]
    return [*held, Held("tail", 1, ranks), Held("middle", 0, ranks, end=2), Held("middle", 1, ranks, end=BLOCKS)]


@pytest.mark.parametrize(("family", "task"), every_family())
def test_any_part_is_the_sum_of_its_pieces(family: str, task: str, tiny_model: ModelMaker) -> None:
    """Counts from no more than two blocks are what running the part itself counts: to the last FLOP and byte.

    Ranks that were counted and ranks that lie on their line; blocks that do not train, below and between.
    """
    settings = settings_for(tiny_model(family, task), task)
    pieces, whole = CostModel(settings), Counter(settings)
    powers = torch.tensor([1.0, TOKENS, TOKENS**2], dtype=torch.float64).numpy()
    patterns = ((RANK,) * BLOCKS, (0, 5, 0))
    for ranks in patterns:
        for held in [*every_part(ranks), Held("whole", BLOCKS, ranks)]:
            counts = whole.once(held, TOKENS)
            expected = (counts.forward_flops, counts.backward_flops, counts.kept_bytes)
            assert tuple((PROBE_SAMPLES * pieces._counted(held)[:3] @ powers).round()) == expected, held
            assert pieces._frozen_bytes(held) == whole.frozen_bytes(held), held
            assert sorted(pieces._names(held)) == sorted(whole.part(held).names), held


def test_no_part_is_run_but_the_pieces(tiny_model: ModelMaker) -> None:
    """However many cuts and ranks are asked for."""
    costs = CostModel(settings_for(tiny_model("llama", "causal-lm"), "causal-lm"))

    def ask(ranks: tuple[int, ...]) -> None:
        for cut in range(BLOCKS + 1):
            plan = DevicePlan("somebody", cut, ranks=ranks)
            costs.device(plan, Flow(), SAMPLES, TOKENS)
            costs.server(plan, SAMPLES, TOKENS)

    ask((RANK,) * BLOCKS)
    ask((1, 2, 3))
    with mock.patch.object(Counter, "once", side_effect=AssertionError("counted again")):
        for ranks in ((3, 2, 1), (7, 8, 9), (2, 2, 2)):
            ask(ranks)


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3_text", marks=pytest.mark.slow)])
def test_a_deep_model_is_counted_on_two_blocks(family: str, tmp_path: Path) -> None:
    """A device, a server and the whole of seven blocks, of ranks of their own; a recomputed one too."""
    deep = 7
    config = tiny.CONFIGS[family]().to_dict() | {"num_hidden_layers": deep}
    made = type(tiny.CONFIGS[family]())(**{key: value for key, value in config.items() if key != "layer_types"})
    with mock.patch.dict(tiny.CONFIGS, {family: lambda: made}):
        folder = tiny.save_tiny_model(family, "causal-lm", tmp_path)
    for recomputed in (False, True):
        settings = settings_for(folder, "causal-lm", checkpoint_device=recomputed)
        pieces, whole = CostModel(settings), Counter(settings)
        ranks = (0, 2, 0, 5, 4, 4, 1)
        for held in (Held("device", 5, ranks), Held("server", 3, ranks), Held("tail", 5, ranks)):
            counts = whole.once(held, TOKENS)
            flops, back, kept = (PROBE_SAMPLES * pieces._counted(held)[:3] @ [1.0, TOKENS, TOKENS**2]).round()
            assert (flops, back) == (counts.forward_flops, counts.backward_flops)
            assert kept == counts.kept_bytes, held


def test_blocks_that_differ_are_counted_as_they_are(tiny_model: ModelMaker) -> None:
    settings = settings_for(tiny_model("llama", "causal-lm"), "causal-lm")
    costs, whole = CostModel(settings), Counter(settings)
    costs.__dict__["_alike"] = False
    held = Held("device", 1, (RANK,) * BLOCKS)
    assert (costs._counted(held) == whole.counted(held)).all()
    assert costs._frozen_bytes(held) == whole.frozen_bytes(held)
