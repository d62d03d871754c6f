"""Structured pruning: what is removed is really gone, and what is left computes as if the rest were zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from bases import moved_adapter, open_base, some_kept
from cutlayer.errors import ConfigError, MalformedMessage
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.families import FAMILIES
from cutlayer.model.importance import magnitudes
from cutlayer.model.structure import Structure
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, Kept
from turns import CASES

ModelMaker = Callable[[str, str], Path]
ALL = LoraSettings(rank=4, targets=("all-linear",))


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification", lora=ALL)


def silence(base: Base, kept: Kept, adapter: Adapter) -> Adapter:
    """Zeroes, in the unpruned model and its adapter, the columns that take the outputs of removed units."""
    structure = base.structure
    adapter = {name: tensor.clone() for name, tensor in adapter.items()}
    for path, member in structure.members.items():
        if member.makes:
            continue
        for block in range(structure.num_blocks):
            name = f"{base._blocks}.{block}.{path}"
            place = structure.where(f"{name}.weight", kept)
            if place is None:
                continue
            axis, indices = place
            weight = base.weights.get(f"{name}.weight")
            gone = torch.ones(weight.shape[axis], dtype=torch.bool)
            gone[indices] = False
            weight.index_fill_(axis, gone.nonzero().flatten(), 0.0)
            adapter[f"base_model.model.{name}.lora_A.weight"][:, gone] = 0.0
    return adapter


@pytest.mark.parametrize(("family", "task"), CASES)
def test_removing_units_is_zeroing_what_takes_them(family: str, task: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, task), task, lora=ALL)
    kept, adapter, batch = some_kept(base.structure, 3), moved_adapter(base), random_batch(task)
    part = base.pruned(kept)
    sliced = {name: tensor.requires_grad_() for name, tensor in base.structure.slice_all(adapter, kept).items()}
    parameters = {name: torch.nn.Parameter(tensor) for name, tensor in sliced.items()}
    part.use(parameters)
    loss, logits = part.loss_and_logits(batch)
    loss.backward()

    whole = base.whole()
    silenced = {name: torch.nn.Parameter(tensor) for name, tensor in silence(base, kept, adapter).items()}
    whole.use(silenced)
    whole_loss, whole_logits = whole.loss_and_logits(batch)
    whole_loss.backward()
    torch.testing.assert_close(logits, whole_logits, rtol=1e-4, atol=1e-5)
    for name, parameter in parameters.items():
        expected = base.structure.slice(name, gradient(silenced[name]), kept)
        torch.testing.assert_close(gradient(parameter), expected, rtol=1e-3, atol=1e-5)


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_matrices_are_really_smaller(family: str, tiny_model: ModelMaker) -> None:
    task = FAMILIES[family].tasks[0]
    base = open_base(tiny_model(family, task), task, lora=ALL)
    kept = some_kept(base.structure, 5)
    part, left = base.pruned(kept), list(zip(kept.heads, kept.channels, strict=True))
    for block, (heads, channels) in enumerate(left):
        for path, member in base.structure.members.items():
            layer = part.model.get_submodule(f"{base._blocks}.{block}.{path}")
            assert isinstance(layer, LoraLayer)
            weight = layer.base_layer.weight
            units = heads if member.group == "heads" else channels
            share = len(units) / base.structure.counts[member.group]
            whole = base.weights.get(f"{base._blocks}.{block}.{path}.weight")
            axis = member.axis("weight")
            assert axis is not None
            assert weight.shape[axis] == round(share * whole.shape[axis])
            assert weight.shape[1 - axis] == whole.shape[1 - axis]
            inner = layer.lora_A["default"].in_features, layer.lora_B["default"].out_features
            assert inner == (tuple(weight.shape) if member.transposed else tuple(weight.shape)[::-1])
    assert part.model.training


def test_nothing_removed_is_the_whole_model_itself(bert: Base) -> None:
    assert bert.pruned(bert.structure.everything) is bert.whole()
    structure = bert.structure
    for name, tensor in moved_adapter(bert).items():
        assert structure.slice(name, tensor, structure.everything) is tensor


def test_a_process_keeps_one_pruned_copy(bert: Base) -> None:
    """And shares what nothing is removed from with the unpruned model."""
    one, other = some_kept(bert.structure, 1), some_kept(bert.structure, 2)
    part = bert.pruned(one)
    assert bert.pruned(one) is part
    assert bert.pruned(other) is not part
    assert bert.pruned(one) is not part
    tables = (bert.pruned(one).model, bert.whole().model)
    first, second = (model.get_submodule("bert.embeddings.word_embeddings").weight for model in tables)
    assert first.data_ptr() == second.data_ptr()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("ratio", "left"),
    [(0.0, (4, 32)), (0.24, (4, 25)), (0.25, (3, 24)), (0.5, (2, 16)), (0.99, (1, 1)), (1 - 1e-12, (1, 1))],
)
def test_whole_units_are_rounded_down_and_one_is_always_left(ratio: float, left: tuple[int, int], bert: Base) -> None:
    assert bert.structure.left(ratio) == left


def test_heads_that_share_a_key_go_together(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm", lora=ALL)
    assert base.structure.counts == {"heads": 2, "channels": 32}
    kept = replace(base.structure.everything, heads=((1,), (0, 1), (0, 1)))
    attention = "model.layers.0.self_attn"
    place = {path: base.structure.where(f"{attention}.{path}.weight", kept) for path in ("q_proj", "k_proj", "o_proj")}
    rows = {path: found and (found[0], found[1].tolist()) for path, found in place.items()}
    assert rows == {"q_proj": (0, [*range(8, 16)]), "k_proj": (0, [*range(4, 8)]), "o_proj": (1, [*range(8, 16)])}
    assert base.structure.where("model.layers.1.self_attn.q_proj.weight", kept) is None


def test_one_projection_for_queries_keys_and_values(tiny_model: ModelMaker) -> None:
    """Phi-3: 16 rows of queries, 8 of keys, 8 of values; GPT-2 three times 16 columns."""
    base = open_base(tiny_model("phi3", "causal-lm"), "causal-lm", lora=ALL)
    kept = replace(base.structure.everything, heads=((1,),) * BLOCKS, channels=((0, 3),) * BLOCKS)
    found = base.structure.where("model.layers.0.self_attn.qkv_proj.weight", kept)
    assert found is not None
    assert found[1].tolist() == [*range(8, 16), *range(20, 24), *range(28, 32)]
    found = base.structure.where("model.layers.0.mlp.gate_up_proj.weight", kept)
    assert found is not None
    assert found[1].tolist() == [0, 3, 32, 35]
    gpt2 = open_base(tiny_model("gpt2", "causal-lm"), "causal-lm", lora=ALL)
    kept = replace(gpt2.structure.everything, heads=((2,),) * BLOCKS)
    found = gpt2.structure.where("transformer.h.1.attn.c_attn.weight", kept)
    assert found is not None
    assert (found[0], found[1].tolist()) == (1, [*range(8, 12), *range(24, 28), *range(40, 44)])
    found = gpt2.structure.where("transformer.h.1.attn.c_attn.bias", kept)
    assert found is not None
    assert found[0] == 0


def test_shapes_without_tensors(bert: Base) -> None:
    structure = bert.structure
    kept = Kept(((0, 2),) * BLOCKS, (tuple(range(5, 12)),) * BLOCKS)
    sliced = structure.slice_all(moved_adapter(bert), kept)
    for name, shape in bert.shapes.items():
        assert structure.shape(name, shape, (2, 7)) == tuple(sliced[name].shape)


def test_a_structure_travels_as_tensors(bert: Base) -> None:
    kept, scores = some_kept(bert.structure, 4), magnitudes(bert)
    for importance in (scores, {}):
        again, read = bert.structure.from_tensors(bert.structure.to_tensors(kept, importance), "device-0")
        assert again == kept
        assert read == importance


def bent(base: Base, name: str, values: Sequence[float], dtype: torch.dtype = torch.int32) -> Adapter:
    tensors = base.structure.to_tensors(base.structure.everything, magnitudes(base))
    return {**tensors, name: torch.tensor(values, dtype=dtype)}


@pytest.mark.parametrize(
    ("name", "units"),
    [("0.heads", [0, 4]), ("0.heads", [1, 1]), ("2.channels", [3, 2]), ("1.heads", [-1, 2]), ("1.heads", [])],
)
def test_a_structure_that_is_none_of_this_model(name: str, units: list[int], bert: Base) -> None:
    with pytest.raises(MalformedMessage, match=f"device-3.*{name}"):
        bert.structure.from_tensors(bent(bert, f"kept/{name}", units), "device-3")


@pytest.mark.parametrize(
    ("name", "values", "dtype", "complaint"),
    [
        ("kept/3.heads", [0], torch.int32, "3 blocks"),
        ("importance/3.heads", [0], torch.float32, "3 blocks"),
        ("kept/0.heads", [0], torch.int64, "ascending int32"),
        ("importance/0.heads", [0.0], torch.float32, "4 fp32 scores"),
        ("importance/0.heads", [0.0] * 4, torch.float64, "4 fp32 scores"),
    ],
)
def test_a_structure_with_other_names_or_types(
    name: str, values: list[float], dtype: torch.dtype, complaint: str, bert: Base
) -> None:
    with pytest.raises(MalformedMessage, match=complaint):
        bert.structure.from_tensors(bent(bert, name, values, dtype), "device-0")


def test_lora_must_cover_what_is_pruned(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    with pytest.raises(ConfigError, match=r"intermediate\.dense.*lora\.targets=\[all-linear\]"):
        _ = base.structure


def test_a_family_that_is_not_described(bert: Base) -> None:
    row = replace(FAMILIES["bert"], ffn_output="mlp.down_proj")
    with pytest.raises(ConfigError, match=r"families\.py.*ffn_output.*'mlp\.down_proj'"):
        Structure(bert._skeletons.make(), bert._blocks, row)
