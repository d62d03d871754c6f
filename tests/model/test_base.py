"""The base: which names a side holds, where an adapter starts, and what the settings change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.integrations import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bases import moved_adapter, open_base, settings_for
from cutlayer.errors import ModelError
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.families import FAMILIES
from cutlayer.model.noise import normal
from cutlayer.model.part import model_inputs
from cutlayer.model.pooling import FRESH_POOLER_STD
from cutlayer.model.skeleton import Skeletons
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter
from turns import CASES

ModelMaker = Callable[[str, str], Path]
POOLER = "base_model.model.bert.pooler.dense.weight"
CLASSIFIER = "base_model.model.classifier.weight"


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def changed(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor], to: Path) -> Path:
    """A copy of the model with one tensor changed."""
    shutil.copytree(folder, to)
    path = to / "model.safetensors"
    tensors = {key: value.clone() for key, value in load_file(path).items()}
    tensors[name] = change(tensors[name])
    path.unlink()
    save_file(tensors, path)
    return to


def test_names_belong_to_blocks_and_sides(bert: Base) -> None:
    blocks = {name: bert.block_of(name) for name in bert.shapes}
    assert {block for block in blocks.values() if block is not None} == set(range(BLOCKS))
    assert {name for name, block in blocks.items() if block is None} == {
        f"base_model.model.{path}.{kind}" for path in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")
    }
    for name, block in blocks.items():
        if block is not None:
            assert f".encoder.layer.{block}." in name
    for cut in range(BLOCKS + 1):
        assert bert.device_names(cut) == [name for name, block in blocks.items() if block is not None and block < cut]
        assert bert.server_names(cut) == [name for name, block in blocks.items() if block is None or block >= cut]


def test_a_module_that_looks_like_a_block_is_none(bert: Base) -> None:
    assert bert.block_of("base_model.model.other.encoder.layer.1.lora_A.weight") is None
    assert bert.block_of("bert.encoder.layer.1.lora_A.weight") is None


# ------------------------------------------------------------------ where an adapter starts


def test_the_initial_adapter_has_the_trained_names_and_shapes(bert: Base) -> None:
    adapter = bert.initial_adapter(0)
    assert {name: tuple(value.shape) for name, value in adapter.items()} == bert.shapes
    assert all(value.dtype is torch.float32 for value in adapter.values())


@pytest.mark.parametrize(
    "family", ["gpt2", "bert", "llama", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES)]
)
def test_one_block_speaks_for_those_like_it(family: str, tiny_model: ModelMaker) -> None:
    """Names, order and shapes are those of LoRA on every block; the head comes last, wherever the model has it."""
    task = FAMILIES[family].tasks[0]
    base = open_base(tiny_model(family, task), task, lora=LoraSettings(targets=("all-linear",)))
    slots = {slot.name: tuple(getattr(slot.module, slot.attribute).shape) for slot in base.whole().slots}
    assert list(base.shapes.items()) == sorted(slots.items(), key=lambda slot: ".lora_" not in slot[0])


def test_a_block_that_is_not_alike_speaks_for_itself(tiny_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    built = Skeletons._built

    def wider_in_the_middle(self: Skeletons, config: Any, where: str = "meta") -> Any:
        model = built(self, config, where)
        layer = model.model.layers[1].mlp
        layer.gate_proj, layer.up_proj, layer.down_proj = (
            nn.Linear(*shape, bias=False, device=where) for shape in ((16, 40), (16, 40), (40, 16))
        )
        return model

    monkeypatch.setattr(Skeletons, "_built", wider_in_the_middle)
    settings = settings_for(tiny_model("llama", "causal-lm"), "causal-lm", lora=LoraSettings(targets=("all-linear",)))
    shapes = Base(settings, device="meta").shapes
    widths = [shapes[f"base_model.model.model.layers.{b}.mlp.gate_proj.lora_B.weight"][0] for b in range(BLOCKS)]
    assert widths[1] == 40
    assert widths[0] == widths[2] != 40


def test_the_seed_decides_the_initial_adapter(bert: Base, tiny_model: ModelMaker) -> None:
    one = bert.initial_adapter(0)
    again = open_base(tiny_model("bert", "classification"), "classification").initial_adapter(0)
    assert all(torch.equal(one[name], again[name]) for name in one)
    other = bert.initial_adapter(1)
    drawn = [name for name in one if ".lora_A." in name]
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_the_initial_adapter_does_not_know_of_cuts(bert: Base) -> None:
    """Parts were built or not, in whatever order, with whatever random numbers drawn: the start is the same."""
    before = bert.initial_adapter(3)
    torch.manual_seed(77)
    bert.server_part(2)
    bert.device_part(1)
    after = bert.initial_adapter(3)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_head_that_fits_comes_from_the_checkpoint(bert: Base, tiny_model: ModelMaker) -> None:
    stored = load_file(tiny_model("bert", "classification") / "model.safetensors")
    adapter = bert.initial_adapter(0)
    for path in ("bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"):
        assert torch.equal(adapter[f"base_model.model.{path}"], stored[path])


def test_a_head_for_other_classes_begins_anew(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", num_labels=7)
    adapter = base.initial_adapter(0)
    assert adapter[CLASSIFIER].shape == (7, 16)
    assert adapter[CLASSIFIER].std() == pytest.approx(base.config.initializer_range, rel=0.3)
    assert not adapter["base_model.model.classifier.bias"].any()
    assert not torch.equal(adapter[CLASSIFIER], base.initial_adapter(1)[CLASSIFIER])


def test_a_pooler_that_never_learned_begins_anew(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = tiny_model("bert", "classification")
    shrunken = changed(folder, "bert.pooler.dense.weight", lambda weight: weight * 0.2, tmp_path / "shrunken")
    adapter = open_base(shrunken, "classification").initial_adapter(0)
    assert adapter[POOLER].std() == pytest.approx(FRESH_POOLER_STD, rel=0.15)
    assert not adapter[POOLER.replace("weight", "bias")].any()
    assert torch.equal(adapter[CLASSIFIER], load_file(folder / "model.safetensors")["classifier.weight"])


def test_a_pooler_that_learned_is_kept(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = tiny_model("bert", "classification")
    small = changed(folder, "bert.pooler.dense.weight", lambda weight: weight * 0.7, tmp_path / "small")
    adapter = open_base(small, "classification").initial_adapter(0)
    assert torch.equal(adapter[POOLER], load_file(small / "model.safetensors")["bert.pooler.dense.weight"])


@pytest.mark.parametrize("family", ["roberta", "distilbert", "llama", "gpt2"])
def test_heads_of_other_families_come_from_the_checkpoint(family: str, tiny_model: ModelMaker) -> None:
    folder = tiny_model(family, "classification")
    stored = load_file(folder / "model.safetensors")
    base = open_base(folder, "classification")
    heads = [name for name in base.shapes if base.block_of(name) is None]
    assert heads
    adapter = base.initial_adapter(0)
    assert all(torch.equal(adapter[name], stored[name.removeprefix("base_model.model.")]) for name in heads)


# ------------------------------------------------------------------ parts


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_recomputing_changes_nothing_in_any_family(family: str, tiny_model: ModelMaker) -> None:
    task = FAMILIES[family].tasks[0]
    plain = open_base(tiny_model(family, task), task)
    thrifty = open_base(tiny_model(family, task), task, checkpoint_device=True, checkpoint_server=True)
    batch, values = random_batch(task), moved_adapter(plain)

    def gradients(base: Base, cut: int) -> Adapter:
        adapter = {name: nn.Parameter(value) for name, value in values.items()}
        device, server = base.device_part(cut), base.server_part(cut)
        device.use(adapter)
        server.use(adapter)
        h_BTD = device.forward(model_inputs(batch))
        assert h_BTD.requires_grad == (cut > 0), "a device without blocks has nothing to train"
        fed_BTD = h_BTD.detach().requires_grad_(cut > 0)
        server.loss(fed_BTD, batch.attention_mask_BT.bool(), batch.labels).backward()
        assert (fed_BTD.grad is not None) == (cut > 0)
        if cut > 0:
            h_BTD.backward(fed_BTD.grad)
        return {name: p.grad for name, p in adapter.items() if p.grad is not None}

    for cut in (0, 1):
        one, other = gradients(plain, cut), gradients(thrifty, cut)
        assert one.keys() == other.keys() == plain.shapes.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_trained_heads_are_fp32_in_a_half_precision_model(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", dtype="bf16")
    base.whole().use({name: nn.Parameter(value) for name, value in moved_adapter(base).items()})
    loss, logits = base.whole().loss_and_logits(random_batch("classification"))
    assert logits.dtype is torch.float32
    loss.backward()
    frozen = {name: p for name, p in base.whole().model.named_parameters() if not p.requires_grad}
    assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
    assert base.device_part(1).forward(model_inputs(random_batch("classification"))).dtype is torch.bfloat16


def test_on_the_meta_device_no_weight_is_read(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = tiny_model("bert", "classification")
    shutil.copy(folder / "config.json", tmp_path)
    base = Base(settings_for(tmp_path, "classification"), device="meta")
    assert base.num_blocks == BLOCKS
    assert base.shapes == open_base(folder, "classification").shapes
    base.device_part(1)
    base.server_part(1)
    assert base.weights.bytes_read == 0
    assert all(value.is_meta for value in base.initial_adapter(0).values())


def test_a_part_is_whole_while_another_thread_attaches_lora(tiny_model: ModelMaker) -> None:
    """PEFT then has all parameters of the process registered on the meta device."""
    model = tiny_model("bert", "classification")
    with init_empty_weights():
        part = open_base(model, "classification").whole()
    absent = {name for name, value in part.model.named_parameters() if value.is_meta}
    assert len(absent) == len(part.slots), "nothing but what an adapter is put into"


# ------------------------------------------------------------------ folds


def fold_of(base: Base, number: int, rank: int = 3) -> Adapter:
    """Stacked factors of this rank for every module, drawn by the number."""
    shapes = base.shapes_of((rank,) * base.num_blocks)
    generator = torch.Generator().manual_seed(number)
    return {
        f"{number}/{name}": 0.1 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
        if ".lora_" in name
    }


def logits(base: Base, adapter: Adapter) -> Tensor:
    part = base.whole()
    part.use(adapter)
    with torch.no_grad():
        return part.loss_and_logits(random_batch(base.settings.task, seed=4))[1]


@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_fold_is_the_adapter_in_the_weights(family: str, task: str, tiny_model: ModelMaker) -> None:
    """The folded model without an adapter is the model with the fold as its adapter, in parts made before and after.

    Unfolded it is as it was.
    """
    rank = LoraSettings().rank
    base = open_base(tiny_model(family, task), task)
    plain, fold = base.initial_adapter(0), fold_of(base, 0, rank)
    before = logits(base, plain)
    adapted = {**plain, **{key.removeprefix("0/"): value for key, value in fold.items()}}
    expected = logits(base, adapted)
    assert not torch.allclose(expected, before, atol=1e-3)
    base.fold(fold)
    torch.testing.assert_close(logits(base, plain), expected, rtol=1e-4, atol=1e-5)
    split = base.device_part(1), base.server_part(1)
    for part in split:
        part.use(plain)
    batch = random_batch(task, seed=4)
    if task == "classification":
        loss = split[1].loss(split[0].forward(model_inputs(batch)), batch.attention_mask_BT.bool(), batch.labels)
        torch.testing.assert_close(loss, nn.functional.cross_entropy(logits(base, plain), batch.labels))
    base.unfold()
    assert torch.equal(logits(base, plain), before)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_folds_are_done_once_and_in_order(dtype: str, tiny_model: ModelMaker) -> None:
    """However they come, whoever asks: the weights are the same, bit for bit."""
    folder = tiny_model("bert", "classification")
    bases = [open_base(folder, "classification", dtype=dtype) for _ in range(3)]
    folds = [fold_of(bases[0], number, rank=1 + number % 3) for number in range(12)]
    for fold in folds:
        bases[0].fold(fold)
        bases[0].fold(fold)
    everything = {key: value for fold in folds for key, value in fold.items()}
    bases[1].fold(dict(sorted(everything.items())))
    bases[2].fold({**folds[0], **folds[1]})
    bases[2].fold(everything)
    for path in (key.removeprefix("0/base_model.model.").replace(".lora_A.", ".") for key in folds[0] if "_A." in key):
        one, *others = (base.weights.get(path) for base in bases)
        assert one.dtype is bases[0].dtype
        assert all(torch.equal(one, other) for other in others)
        assert not torch.equal(one, bases[0].weights.read(path).to(one.dtype))


def test_a_fold_that_is_missing(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    base.fold(fold_of(base, 0))
    with pytest.raises(ModelError, match=r"expected fold 1 of bert\.encoder\.layer\.0\S+ next, got 2\. Send all"):
        base.fold(fold_of(base, 2))


def test_a_fold_never_reaches_the_disk(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = tiny_model("gpt2", "causal-lm")
    before = (folder / "model.safetensors").read_bytes()
    base = open_base(folder, "causal-lm")
    base.fold(fold_of(base, 0))
    assert (folder / "model.safetensors").read_bytes() == before
    fresh = open_base(folder, "causal-lm")
    assert not torch.equal(logits(base, base.initial_adapter(0)), logits(fresh, fresh.initial_adapter(0)))


# ------------------------------------------------------------------ standings

SEEDS = (5, 10**11)


@pytest.mark.parametrize(
    ("family", "task"), [("bert", "classification"), ("qwen2", "causal-lm"), ("gpt2", "causal-lm")]
)
def test_all_parts_stand_where_the_base_does(family: str, task: str, tiny_model: ModelMaker) -> None:
    """Parts made before and after; tied weights move once; unfolded, all is as it was."""
    base, batch = open_base(tiny_model(family, task), task), random_batch(task)
    adapter = moved_adapter(base)

    def split_loss() -> torch.Tensor:
        device, server = base.device_part(1, frozenset()), base.server_part(1, frozenset())
        server.use(adapter)
        h_BTD = device.forward(model_inputs(batch))
        return server.loss(h_BTD, batch.attention_mask_BT.bool(), batch.labels)

    before = split_loss()
    standing = base.standing(SEEDS, {})
    standing.move(torch.tensor([1e-3, -2e-3]))
    after = split_loss()
    assert not torch.allclose(after, before, rtol=1e-5)
    base.whole(frozenset()).use(adapter)
    assert torch.equal(base.whole(frozenset()).loss(batch), after)
    for name in standing.tensors:
        stored = base.weights.read(name)
        z_KN = normal(SEEDS, name, 0, stored.numel())
        expected = stored - (1e-3 * z_KN[0] - 2e-3 * z_KN[1]).view(stored.shape)
        torch.testing.assert_close(base.weights.get(name), expected, atol=1e-6, rtol=0)
    standing.move(torch.zeros(2))
    torch.testing.assert_close(split_loss(), before, atol=1e-5, rtol=0)
    base.unfold()
    assert torch.equal(split_loss(), before)


def test_a_base_has_one_standing(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    heads = {name: value for name, value in moved_adapter(base).items() if ".lora_" not in name}
    standing = base.standing(SEEDS, heads)
    assert base.standing(SEEDS, heads) is standing
    assert set(heads) < set(standing.tensors), "the head moves along"
    assert "classifier.weight" not in standing.tensors, "and is not there twice"
    standing.move(torch.tensor([1e-3, 0.0]))
    base.unfold()
    assert not base.standing(SEEDS, heads).sums.any(), "unfolded, it stands at the beginning again"
    another = base.standing((6, 7), heads)
    assert not another.sums.any()
    fresh = open_base(tiny_model("bert", "classification"), "classification").standing((6, 7), heads)
    assert all(torch.equal(tensor, fresh.tensors[name]) for name, tensor in another.tensors.items())
    assert all(torch.equal(value, moved_adapter(base)[name]) for name, value in heads.items()), "copied"


def test_what_no_part_uses_does_not_move(tiny_model: ModelMaker) -> None:
    """Mean pooling leaves the pooler out."""
    base = open_base(tiny_model("bert", "classification"), "classification", pooling="mean")
    assert not any("pooler" in name for name in base.standing(SEEDS, {}).tensors)


def test_a_standing_is_of_fp32(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", dtype="bf16")
    with pytest.raises(ModelError, match=r"expected contiguous fp32 weights.*Set model\.dtype=fp32"):
        base.standing(SEEDS, {})


def test_on_the_meta_device_there_is_nothing_to_move(tiny_model: ModelMaker) -> None:
    base = Base(settings_for(tiny_model("bert", "classification"), "classification"), device="meta")
    standing = base.standing(SEEDS, base.initial_adapter(0))
    standing.move(torch.tensor([1e-3, 0.0]))
    assert base.weights.bytes_read == 0


# ------------------------------------------------------------------ ranks by module


def test_ranks_may_be_of_blocks_or_of_modules(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm", lora=LoraSettings(targets=("all-linear",)))
    assert len(base.modules) == 7 * BLOCKS
    assert [base.block_of(name) for name in base.modules] == sorted(base.block_of(name) or 0 for name in base.modules)
    assert not base.by_module(())
    assert not base.by_module((1, 2, 3))
    ranks = tuple(1 + place % 8 for place in range(len(base.modules)))
    assert base.by_module(ranks)
    assert base.ranks_on(1, (1, 2, 3)) == (2,)
    assert base.ranks_on(1, ranks) == ranks[7:14]
    shapes, adapter = base.shapes_of(ranks), base.initial_adapter(0)
    cut = base.at_ranks(adapter | {f"{name}#exp_avg": value for name, value in adapter.items()}, ranks)
    for place, a in enumerate(base.modules):
        b = a.replace(".lora_A.", ".lora_B.")
        assert (shapes[a][0], shapes[b][1]) == (ranks[place], ranks[place])
        assert torch.equal(cut[a], adapter[a][: ranks[place]])
        assert torch.equal(cut[f"{b}#exp_avg"], adapter[b][:, : ranks[place]])
    assert base.shapes_of((8,) * len(base.modules)) == base.shapes_of() == base.shapes
