"""Every layout of a folder of weights that transformers' own loader takes: the same weights here, or a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bases import moved_adapter, open_base
from cutlayer.errors import ModelError
from cutlayer.model.pieces import PieceServer
from cutlayer.model.source import INDEX, SINGLE, read_header
from cutlayer.testing.tiny import random_batch, save_tiny_model

ModelMaker = Callable[[str, str], Path]
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def put(folder: Path, tensors: dict[str, Tensor], name: str = SINGLE) -> None:
    """Writes a file of tensors, in the place of one that may be mapped."""
    (folder / name).unlink(missing_ok=True)
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, folder / name, {"format": "pt"})


def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value + 0.25 for name, value in tensors.items()}


def whole(folder: Path) -> dict[str, Tensor]:
    """All tensors, from wherever they are."""
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def indexed(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / INDEX).read_text())["weight_map"])


def index(folder: Path, named: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))


def single(folder: Path) -> None:
    tensors = whole(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    put(folder, tensors)


def shards(_folder: Path) -> None:
    """As saved."""


def an_old_index_and_its_shards(folder: Path) -> None:
    put(folder, moved(whole(folder)))


def an_old_index_alone(folder: Path) -> None:
    tensors = moved(whole(folder))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    put(folder, tensors)


def an_index_that_names_half_of_what_is_there(folder: Path) -> None:
    named = indexed(folder)
    first = dict.fromkeys(named.values())
    index(folder, {next(name for name, file in named.items() if file == shard): shard for shard in first})


def an_index_that_names_the_wrong_shard(folder: Path) -> None:
    named = indexed(folder)
    files = sorted(set(named.values()))
    index(folder, {name: files[(files.index(file) + 1) % len(files)] for name, file in named.items()})


def a_tensor_in_two_shards(folder: Path) -> None:
    named = indexed(folder)
    first, last = min(named.values()), max(named.values())
    name = next(name for name, file in named.items() if file == first)
    put(folder, load_file(folder / last) | {name: load_file(folder / first)[name] + 1.0}, last)


def variants_beside(folder: Path) -> None:
    single(folder)
    put(folder, moved(whole(folder)), "model.fp16.safetensors")
    put(folder, moved(load_file(folder / SINGLE)), "consolidated.safetensors")


def shards_that_no_index_names(folder: Path) -> None:
    put(folder, moved(load_file(folder / max(indexed(folder).values()))), "model-99999-of-99999.safetensors")


LAYOUTS = [
    single,
    shards,
    an_old_index_and_its_shards,
    an_old_index_alone,
    an_index_that_names_half_of_what_is_there,
    an_index_that_names_the_wrong_shard,
    a_tensor_in_two_shards,
    variants_beside,
    shards_that_no_index_names,
]


def theirs(folder: Path, task: str) -> dict[str, Tensor]:
    maker = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    return dict(maker.from_pretrained(folder, dtype=torch.float32).state_dict())


def assert_same(folder: Path, task: str) -> None:
    """Each of our tensors, frozen or trained, is transformers'."""
    base, expected = open_base(folder, task), theirs(folder, task)
    ours = dict(base.whole().model.named_parameters(remove_duplicate=False))
    found = {name.replace(".base_layer.", "."): value for name, value in ours.items() if not value.is_meta}
    found |= {name.removeprefix("base_model.model."): value for name, value in base.initial_adapter(0).items()}
    same = expected.keys() & found.keys()
    assert len(same) == len(expected)
    for name in same:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "causal-lm")])
def test_what_transformers_reads_is_read(
    family: str, task: str, layout: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = save_tiny_model(family, task, tmp_path, shard="5KB")
    layout(folder)
    assert_same(folder, task)


def tied(folder: Path) -> dict[str, Tensor]:
    save_tiny_model("qwen2", "causal-lm", folder)
    tensors = load_file(folder / SINGLE)
    assert HEAD not in tensors
    return {name: value.clone() for name, value in tensors.items()}


TIES: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "no head": lambda tensors: tensors,
    "the same head": lambda tensors: tensors | {HEAD: tensors[TABLE]},
    "a head of its own": lambda tensors: tensors | {HEAD: tensors[TABLE] + 0.5},
    "a head alone": lambda tensors: {HEAD if name == TABLE else name: value for name, value in tensors.items()},
    "a head in another dtype": lambda tensors: tensors | {HEAD: tensors[TABLE].double()},
}


@pytest.mark.parametrize("kind", TIES)
def test_ties_are_those_that_transformers_ties(kind: str, tmp_path: Path) -> None:
    put(tmp_path, TIES[kind](tied(tmp_path)))
    assert_same(tmp_path, "causal-lm")
    base, meta = open_base(tmp_path, "causal-lm"), PieceServer(open_base(tmp_path, "causal-lm").settings)
    own = kind == "a head of its own"
    assert (HEAD in base.parameter_names) is own, "and where nothing is read, such as in what a device costs"
    expected, batch = theirs(tmp_path, "causal-lm"), random_batch("causal-lm")
    assert torch.equal(expected[HEAD], expected[TABLE]) is not own
    # what a server sends of it gives the same on a device that holds both ends
    folder = tmp_path / "device"
    folder.mkdir()
    for piece in meta.manifest(3, top=3):
        (folder / piece.name).write_bytes(meta.read(piece.name, 0, piece.length))
    sent = open_base(folder, "causal-lm")
    adapter = moved_adapter(base)
    for one in (base, sent):
        one.whole().use(adapter)
    assert torch.equal(sent.whole().loss(batch), base.whole().loss(batch))
    # and a device that holds the first blocks alone, without the head, builds its part
    for piece in folder.glob("*.safetensors"):
        if piece.name not in ("embeddings.safetensors", "block-0.safetensors"):
            piece.unlink()
    assert open_base(folder, "causal-lm").device_part(1).names == base.device_part(1).names


def refused(folder: Path, task: str = "causal-lm") -> str:
    with pytest.raises(ModelError) as error:
        open_base(folder, task).whole()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def copied(tiny_model: ModelMaker, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model("llama", "causal-lm"), tmp_path / "model"))


def test_a_variant_alone_is_no_model(copied: Path) -> None:
    (copied / SINGLE).rename(copied / "model.fp16.safetensors")
    with pytest.raises(OSError, match="no file named"):
        theirs(copied, "causal-lm")
    assert f"expected {SINGLE} or {INDEX}, got neither" in refused(copied)


def test_an_adapter_beside_the_model_is_not_left_out(copied: Path) -> None:
    (copied / "adapter_config.json").write_text("{}")
    assert "got one with an adapter (adapter_config.json) beside it" in refused(copied)


def test_weights_under_another_name(copied: Path) -> None:
    (copied / SINGLE).rename(copied / "mine.safetensors")
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformers_weights": "mine.safetensors"}))
    assert "transformers_weights='mine.safetensors'" in refused(copied)


@pytest.mark.parametrize("content", [{"weight_map": []}, {"weight_map": {"a": 1}}, {}])
def test_an_index_that_maps_nothing(content: object, copied: Path) -> None:
    (copied / SINGLE).unlink()
    (copied / INDEX).write_text(json.dumps(content))
    assert "expected a weight_map from tensors to files" in refused(copied)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32])
def test_weights_that_want_a_scale(dtype: torch.dtype, copied: Path) -> None:
    """Without a word in config.json, as some tools save them; with scales beside them that are not ours."""
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors = {key: value.clone() for key, value in load_file(copied / SINGLE).items()}
    put(copied, tensors | {name: (tensors[name] * 50).to(dtype), f"{name}_scale_inv": torch.ones(1, 1)})
    spelled = read_header(copied / SINGLE)[1][name]["dtype"]
    assert f"{name} quantised, in {spelled}. " in refused(copied)
