"""Weights in few bits: a model that holds them is the plain one with what they stand for, bit for bit, however cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from bases import moved_adapter, open_base, settings_for, some_kept
from cutlayer.config import read_config
from cutlayer.device.shape import shape_by_name
from cutlayer.errors import ConfigError, ModelError
from cutlayer.methods.contradictions import check
from cutlayer.methods.table import build_method
from cutlayer.model import quantised
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.cost import BYTES_PER_TRAINABLE, cost_model
from cutlayer.model.counting import Counter, Held
from cutlayer.model.importance import magnitudes, unit_scores
from cutlayer.model.part import Part, model_inputs
from cutlayer.model.pieces import PieceServer, PieceStore
from cutlayer.model.quantised import KINDS, LEVELS, SCALE, Form, Kind, dense_weight
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, Batch, DevicePlan, Flow
from turns import CASES, by_turns

ModelMaker = Callable[[str, str], Path]
FEW = [("llama", "causal-lm"), ("qwen2", "causal-lm"), ("gpt2", "causal-lm"), ("bert", "classification")]
EACH = [(kind, *one) for kind in KINDS for one in FEW]


def with_dense_weights(base: Base) -> Base:
    """A plain base whose weights are what the other's forms stand for."""
    plain = open_base(Path(base.settings.name), base.settings.task)
    for name in base.forms:
        if name not in plain._ties:
            plain.weights.get(name).copy_(base.weights.get(name))
    return plain


def step(base: Base, adapter: dict[str, nn.Parameter], batch: Batch, cut: int | None) -> tuple[Tensor, Adapter]:
    """Loss and gradients of a step at a cut, or of the whole model."""
    for parameter in adapter.values():
        parameter.grad = None
    if cut is None:
        base.whole().use(adapter)
        loss = base.whole().loss(batch)
        loss.backward()
    else:
        device, server = base.device_part(cut), base.server_part(cut)
        device.use(adapter)
        server.use(adapter)
        h_BTD = device.forward(model_inputs(batch))
        fed_BTD = h_BTD.detach().requires_grad_(h_BTD.requires_grad)
        loss = server.loss(fed_BTD, batch.attention_mask_BT.bool(), batch.labels)
        loss.backward()
        if h_BTD.requires_grad:
            h_BTD.backward(fed_BTD.grad)
    found = {name: parameter.grad for name, parameter in adapter.items()}
    assert all(gradient is not None for gradient in found.values())
    return loss.detach(), found  # type: ignore[return-value]


def held_bytes(part: Part) -> int:
    """Bytes of the frozen tensors of a part, each storage once."""
    tensors = {p.data_ptr(): p for p in part.model.parameters() if not p.is_meta}
    return sum(p.numel() * p.element_size() for p in tensors.values())


# ------------------------------------------------------------------ the laws


@pytest.mark.parametrize(
    ("family", "task", "kind"),
    [
        *by_turns(((family, task, "int8") for family, task in CASES), one_of=2),
        *((family, task, "nf4") for family, task in FEW),
    ],
)
def test_split_is_unsplit_is_plain(family: str, task: str, kind: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, task), task, dtype=kind)
    adapter = {name: nn.Parameter(value) for name, value in moved_adapter(base).items()}
    batch = random_batch(task)
    loss, gradients = step(with_dense_weights(base), adapter, batch, None)
    assert any(bool(gradient.abs().max() > 1e-4) for gradient in gradients.values())
    for cut in (None, 0, 1, BLOCKS) if (family, task) in FEW else (None, 1):
        found, its = step(base, adapter, batch, cut)
        assert torch.equal(found, loss), f"cut {cut}"
        for name, gradient in gradients.items():
            assert torch.equal(its[name], gradient), f"cut {cut}: {name}"
    plain, _ = step(open_base(tiny_model(family, task), task), adapter, batch, None)
    assert 0 < abs(float(plain) - float(loss)) < (0.05 if kind == "int8" else 0.4)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_are_computed_with_where_asked(kind: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm", dtype=kind, compute="bf16")
    adapter = {name: nn.Parameter(value) for name, value in moved_adapter(base).items()}
    whole, split = (step(base, adapter, random_batch("causal-lm"), cut) for cut in (None, 1))
    assert base.dtype is base.device_part(1).forward(model_inputs(random_batch("causal-lm"))).dtype is torch.bfloat16
    assert torch.equal(whole[0], split[0])
    assert all(torch.equal(whole[1][name], split[1][name]) for name in whole[1])
    fp32 = open_base(tiny_model("llama", "causal-lm"), "causal-lm", dtype=kind)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(base.weights.get(name), fp32.weights.get(name).bfloat16())


@pytest.mark.parametrize(("kind", "family", "task"), list(by_turns(EACH, one_of=2)))
def test_a_part_holds_its_own_and_the_cost_model_knows_its_bytes(
    family: str, task: str, kind: str, tiny_model: ModelMaker
) -> None:
    folder = tiny_model(family, task)
    base, plain = (open_base(folder, task, dtype=dtype) for dtype in (kind, "fp32"))
    costs = cost_model(base.settings).of(shape_by_name("split").flow)
    adapter = base.initial_adapter(seed=0)
    plain.initial_adapter(seed=0)  # reads the trained head, as the other did
    for cut in (0, 2):
        part, other = base.device_part(cut), plain.device_part(cut)
        trained = BYTES_PER_TRAINABLE * sum(adapter[name].numel() for name in part.names)
        assert costs.device(DevicePlan("pi", cut), 0, 8).memory_bytes - trained == held_bytes(part)
        assert held_bytes(part) < 0.55 * held_bytes(other)  # norms, biases and scales weigh much in a tiny model
        assert base.weights.bytes_read == plain.weights.bytes_read, "as they lie in the file, once"
        blocks = {base.block_of("base_model.model." + name) for name in base.weights.loaded}
        assert blocks <= {None, *range(cut)}
    alone = costs.model.device(DevicePlan("pi", BLOCKS, top=BLOCKS), Flow(), 0, 8)
    trained = BYTES_PER_TRAINABLE * sum(tensor.numel() for tensor in adapter.values())
    assert alone.memory_bytes - trained == held_bytes(base.whole())


def test_flops_are_those_of_plain_weights(tiny_model: ModelMaker) -> None:
    folder = tiny_model("gpt2", "causal-lm")
    every = [cost_model(settings_for(folder, "causal-lm", dtype=dtype)) for dtype in ("fp32", *KINDS)]
    flow = shape_by_name("split").flow
    devices = [model.of(flow).device(DevicePlan("pi", 2), 3, 11) for model in every]
    servers = [model.of(flow).server(DevicePlan("pi", 2), 3, 11) for model in every]
    for side in (devices, servers):
        assert len({(cost.forward_flops, cost.backward_flops) for cost in side}) == 1
        assert side[0].memory_bytes > side[1].memory_bytes >= side[2].memory_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_process_share_their_weights(kind: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("qwen2", "causal-lm"), "causal-lm", dtype=kind)
    one, other = (base.device_part(cut).model.state_dict() for cut in (1, 2))
    shared = [name for name in one if name in other and not one[name].is_meta and "inv_freq" not in name]
    assert {name.rpartition(".")[2] for name in shared} >= {"weight", "weight_scale", "bias"}
    assert all(one[name].data_ptr() == other[name].data_ptr() for name in shared)
    whole: nn.Module = base.whole().model
    embedding, head = whole.get_submodule("model.embed_tokens"), whole.get_submodule("lm_head")
    for attribute in ("numbers", "weight_scale"):
        assert getattr(embedding, attribute).data_ptr() == getattr(head, attribute).data_ptr(), "the head is tied"
    read = base.weights.bytes_read
    base.server_part(1)
    assert base.weights.bytes_read == read


# ------------------------------------------------------------------ forms


@pytest.mark.parametrize("outputs", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_in_its_form(kind: Kind, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_RC = torch.randn(48, 24, generator=generator)
    weight_RC[0] = 0
    form = Form(kind, (48, 24), outputs)
    numbers, scale = form.rounded(weight_RC)
    assert ((tuple(numbers.shape), numbers.dtype), tuple(scale.shape)) == (form.stored, form.scales)
    assert form.num_bytes == numbers.numel() * numbers.element_size() + scale.numel() * scale.element_size()
    dense_RC = form.dense(numbers, scale, torch.float32)
    assert torch.equal(dense_RC[0], torch.zeros(24))
    if kind == "int8":
        bound = weight_RC.abs().amax(1 - outputs, keepdim=True) / 127 / 2
    else:
        gaps = torch.tensor(LEVELS).diff().max() / 2
        bound = (weight_RC.view(-1, 64).abs().amax(1, keepdim=True) * gaps).expand(-1, 64).reshape(48, 24)
    assert bool(((dense_RC - weight_RC).abs() <= bound * 1.0001).all())
    again = form.rounded(dense_RC)
    assert torch.equal(form.dense(*again, torch.float32), dense_RC), "rounded once, it stays"
    with mock.patch.object(quantised, "CHUNK_NUMBERS", 100):
        assert len(form._chunks()) > 3
        assert all(
            torch.equal(one, other) for one, other in zip(form.rounded(weight_RC), (numbers, scale), strict=True)
        )
        assert torch.equal(form.dense(numbers, scale, torch.float32), dense_RC)


def test_the_levels_of_nf4() -> None:
    """Each level times the block's largest is itself, and a byte has the first of two numbers above the second."""
    weight_RC = (3.0 * torch.tensor(LEVELS)).repeat(4)[None]
    form = Form("nf4", (1, 64))
    numbers, scale = form.rounded(weight_RC)
    assert numbers[:8].tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    assert scale.tolist() == [3.0]
    assert torch.equal(form.dense(numbers, scale, torch.float32), weight_RC)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_however_many_rows_at_a_time(kind: Kind, outputs: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    form = Form(kind, (48, 24), outputs)
    numbers, scale = form.rounded(torch.randn(48, 24, generator=generator))
    dense_OI = form.dense(numbers, scale, torch.float32)
    dense_OI = dense_OI.T if outputs else dense_OI
    x_SI = torch.randn(5, dense_OI.shape[1], generator=generator, requires_grad=True)
    b_O = torch.randn(dense_OI.shape[0], generator=generator) if bias else None
    plain_SO = nn.functional.linear(x_SI, dense_OI, b_O)
    dy_SO = torch.randn(plain_SO.shape, generator=generator)
    (plain_dx,) = torch.autograd.grad(plain_SO, x_SI, dy_SO)
    for chunk in (50, 2**20):
        with mock.patch.object(quantised, "CHUNK_NUMBERS", chunk):
            y_SO = quantised._Product.apply(x_SI, numbers, scale, b_O, form)
            (dx_SI,) = torch.autograd.grad(y_SO, x_SI, dy_SO)
        torch.testing.assert_close(y_SO, plain_SO)
        torch.testing.assert_close(dx_SI, plain_dx)


def test_rows_are_made_in_one_place_and_a_whole_weight_in_its_own() -> None:
    """Memory for some rows is used again, by a layer of another shape too; what is kept has memory of its own."""
    generator = torch.Generator().manual_seed(0)
    with mock.patch.object(quantised, "CHUNK_NUMBERS", 256):
        for kind in KINDS:
            form = Form(kind, (48, 24))
            numbers, scale = form.rounded(torch.randn(48, 24, generator=generator))
            dense_RC = form.dense(numbers, scale, torch.float32)
            kept_RC = dense_RC.clone()
            places = set()
            for first, end, rows_RC in form.chunks(numbers, scale, torch.float32):
                assert torch.equal(rows_RC, dense_RC[first:end])
                places.add(rows_RC.data_ptr())
            assert len(places) == 1 < 48 * 24 / 256
            assert torch.equal(dense_RC, kept_RC)
            alone_RC = form.rows(numbers, scale, 8, 16, torch.float32)
            assert torch.equal(alone_RC, dense_RC[8:16])
            assert alone_RC.data_ptr() not in places
    meta = Form("int8", (4, 4))
    for _, _, rows_RC in meta.chunks(torch.empty(4, 4, dtype=torch.int8, device="meta"), torch.empty(4), torch.float32):
        assert rows_RC.is_meta


def test_only_tables_that_are_looked_up_have_a_form() -> None:
    """DeBERTa's blocks read the table of relative positions whole; what is trained stays as it is too."""
    model = nn.ModuleDict(
        {
            "embeddings": nn.ModuleDict({"word": nn.Embedding(10, 64), "position": nn.Embedding(5, 64)}),
            "encoder": nn.ModuleDict(
                {"rel_embeddings": nn.Embedding(8, 64), "layer": nn.ModuleList([nn.Linear(64, 3), nn.Linear(5, 7)])}
            ),
            "classifier": nn.ModuleDict({"dense": nn.Linear(64, 64)}),
            "head": nn.Linear(64, 10),
        }
    )
    forms = quantised.forms_of(
        model, "nf4", "encoder.layer", ["classifier"], ["embeddings.word", "embeddings.position"]
    )
    assert {name: (form.kind, form.shape) for name, form in forms.items()} == {
        "embeddings.word.weight": ("int8", (10, 64)),
        "embeddings.position.weight": ("int8", (5, 64)),
        "encoder.layer.0.weight": ("nf4", (3, 64)),
        "encoder.layer.1.weight": ("int8", (7, 5)),  # 35 weights are no blocks of 64
        "head.weight": ("int8", (10, 64)),
    }


@pytest.mark.parametrize("dtype", ["fp32", *KINDS])
def test_a_tied_head_is_counted_once(dtype: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("qwen2", "causal-lm"), "causal-lm", dtype=dtype)
    whole, table = base.whole(), "model.embed_tokens.weight"
    stored = base.stored_names(whole)
    assert not any(name.startswith("lm_head") for name in stored)
    assert {table, *([] if dtype == "fp32" else [table + SCALE])} == {name for name in stored if "embed_tokens" in name}
    assert sum(value.numel() * value.element_size() for value in stored.values()) == held_bytes(whole)
    counter = Counter(base.settings)
    assert counter.frozen_bytes(Held("whole", BLOCKS, ())) == held_bytes(whole)
    head = base.stored_names(base.server_part(BLOCKS))
    assert stored[table].data_ptr() == head[table].data_ptr(), "under the name of the table above the cut too"
    shared = sum(head[name].numel() * head[name].element_size() for name in head if name.startswith(table))
    assert counter.shared_bytes(Held("device", 1, ()), Held("server", BLOCKS, ())) == shared


def test_nobody_reads_numbers_for_weights(tiny_model: ModelMaker) -> None:
    """A layer says shape and dtype of its weight; whoever wants the numbers asks for them."""
    base = open_base(tiny_model("gpt2", "causal-lm"), "causal-lm", dtype="int8")
    layer = base.device_part(1).model.get_submodule("transformer.h.0.mlp.c_fc")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    assert (tuple(weight.shape), weight.dtype, weight.is_meta) == ((16, 64), torch.float32, True)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(dense_weight(layer), base.weights.get(name))
    norm = base.device_part(1).model.get_submodule("transformer.h.0.ln_1")
    assert dense_weight(norm) is norm.weight
    assert set(base.weights.loaded) >= {name, name + SCALE}


# ------------------------------------------------------------------ pieces


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "task"), FEW)
def test_pieces_travel_in_their_form(family: str, task: str, kind: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = tiny_model(family, task)
    server = PieceServer(settings_for(folder, task, dtype=kind))
    store = PieceStore(tmp_path / "store", 2**30)
    manifest = server.manifest(1, top=BLOCKS)
    for piece, _ in store.missing(manifest):
        for offset in range(0, piece.length, 999):
            store.append(piece, offset, server.read(piece.name, offset, min(999, piece.length - offset)))
    received, files = (open_base(where, task, dtype=kind) for where in (store.folder, folder))
    for one, other in zip(
        (received.device_part(1), received.server_part(BLOCKS)),
        (files.device_part(1), files.server_part(BLOCKS)),
        strict=True,
    ):
        mine, its = (
            {name: value for name, value in part.model.named_parameters() if not value.is_meta} for part in (one, other)
        )
        assert mine.keys() == its.keys()
        assert all(mine[name].dtype == its[name].dtype and torch.equal(mine[name], its[name]) for name in mine)
    sent = sum(piece.length for piece in manifest if piece.name.endswith(".safetensors"))
    headers = sum(
        8 + int.from_bytes(server.read(piece.name, 0, 8), "little")
        for piece in manifest
        if piece.name.endswith(".safetensors")
    )
    held = sum(tensor.numel() * tensor.element_size() for tensor in received.weights.loaded.values())
    assert (read := received.weights.bytes_read) == held
    head = [name.removeprefix("base_model.model.") for name in received.shapes if ".lora_" not in name]
    assert read + sum(received.weights.read(name).nbytes for name in head) == sent - headers, "the trained head too"
    for dtype in {"fp32", *KINDS} - {kind}:
        with pytest.raises(ModelError, match=r"got torch.u?int8 .*Set model.dtype as the files have it"):
            open_base(store.folder, task, dtype=dtype).device_part(1)


# ------------------------------------------------------------------ what changes weights, and what cuts them smaller


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_changes_weights_is_refused(kind: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm", dtype=kind)
    fold = {f"0/{name}": value for name, value in base.initial_adapter(seed=0).items()}
    base.fold({})
    with pytest.raises(ModelError, match=f"expected fp32, bf16 or fp16 where the base's weights change, got {kind}"):
        base.fold(fold)
    with pytest.raises(ModelError, match="where the base's weights change"):
        base.standing((1, 2), {})
    for name in ("flora", "hsplitlora", "fedkseed"):
        method = build_method(name, {}, 0)
        chosen = method.chosen(None, micro_batches=1, base_dropout=False, quantised=kind)
        with pytest.raises(ConfigError, match=f"a method that changes the base's own weights, got {kind}"):
            check(chosen)
    check(build_method("fedlora", {}, 0).chosen(None, micro_batches=1, base_dropout=False, quantised=kind))


def test_a_pruned_part_has_slices_of_numbers_and_scales(tiny_model: ModelMaker) -> None:
    lora = LoraSettings(targets=("all-linear",))
    for family in ("llama", "gpt2"):
        base = open_base(tiny_model(family, "causal-lm"), "causal-lm", dtype="int8", lora=lora)
        plain = open_base(tiny_model(family, "causal-lm"), "causal-lm", lora=lora)
        for name in base.forms:
            if name not in plain._ties:
                plain.weights.get(name).copy_(base.weights.get(name))
        kept = some_kept(base.structure, seed=0)
        adapter = base.structure.slice_all(moved_adapter(base), kept)
        scores = []
        for one in (base, plain):
            parameters = {name: nn.Parameter(value) for name, value in adapter.items()}
            part = one.pruned(kept)
            part.use(parameters)
            loss = part.loss(random_batch("causal-lm"))
            loss.backward()
            scores.append(
                (loss.detach(), *unit_scores(one, part, parameters, kept).values(), *magnitudes(one).values())
            )
        assert all(torch.equal(mine, its) for mine, its in zip(*scores, strict=True))


def test_blocks_of_scales_cannot_be_pruned(tiny_model: ModelMaker) -> None:
    lora = LoraSettings(targets=("all-linear",))
    base = open_base(tiny_model("llama", "causal-lm"), "causal-lm", dtype="nf4", lora=lora)
    with pytest.raises(ConfigError, match="where rows and columns of weights are removed, got nf4"):
        _ = base.structure


def test_plain_weights_are_computed_with_as_they_are(tiny_model: ModelMaker) -> None:
    folder = tiny_model("llama", "causal-lm")
    assert open_base(folder, "causal-lm", dtype="bf16", compute="bf16").dtype is torch.bfloat16
    with pytest.raises(ConfigError, match="expected fp32, in which the weights are, got bf16"):
        open_base(folder, "causal-lm", compute="bf16")


def test_a_run_file_says_it() -> None:
    model = read_config(None, ("model.dtype=int8", "model.compute=bf16")).model
    assert (model.dtype, model.compute) == ("int8", "bf16")
